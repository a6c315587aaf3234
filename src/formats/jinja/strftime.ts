const DAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS = [
  "January",
  "February",
  "March",
  "April",
  "May",
  "June",
  "July",
  "August",
  "September",
  "October",
  "November",
  "December",
];
const DAY_MS = 86_400_000;

/** Python's datetime.strftime in the C locale, of the local time. A directive that is not known stands as it is written. */
export function strftime(date: Date, format: string): string {
  const two = (value: number) => String(value).padStart(2, "0");
  const start = new Date(date.getFullYear(), 0, 1);
  const midnight = new Date(date.getFullYear(), date.getMonth(), date.getDate());
  const dayOfYear = Math.round((midnight.getTime() - start.getTime()) / DAY_MS) + 1;
  const weekday = date.getDay();
  const mondayFirst = (weekday + 6) % 7;
  const hour12 = date.getHours() % 12 === 0 ? 12 : date.getHours() % 12;
  const week = (firstDay: number) => Math.floor((dayOfYear + 6 - firstDay) / 7);
  const iso = isoWeek(midnight);
  const one = (letter: string): string | null => {
    switch (letter) {
      case "a":
        return DAYS[weekday]!.slice(0, 3);
      case "A":
        return DAYS[weekday]!;
      case "b":
      case "h":
        return MONTHS[date.getMonth()]!.slice(0, 3);
      case "B":
        return MONTHS[date.getMonth()]!;
      case "c":
        return `${one("a")} ${one("b")} ${String(date.getDate()).padStart(2)} ${one("T")} ${date.getFullYear()}`;
      case "C":
        return two(Math.floor(date.getFullYear() / 100));
      case "d":
        return two(date.getDate());
      case "D":
      case "x":
        return `${one("m")}/${one("d")}/${one("y")}`;
      case "e":
        return String(date.getDate()).padStart(2);
      case "f":
        return String(date.getMilliseconds() * 1000).padStart(6, "0");
      case "F":
        return `${date.getFullYear()}-${one("m")}-${one("d")}`;
      case "G":
        return String(iso.year);
      case "H":
        return two(date.getHours());
      case "I":
        return two(hour12);
      case "j":
        return String(dayOfYear).padStart(3, "0");
      case "m":
        return two(date.getMonth() + 1);
      case "M":
        return two(date.getMinutes());
      case "n":
        return "\n";
      case "p":
        return date.getHours() < 12 ? "AM" : "PM";
      case "r":
        return `${one("I")}:${one("M")}:${one("S")} ${one("p")}`;
      case "R":
        return `${one("H")}:${one("M")}`;
      case "s":
        return String(Math.floor(date.getTime() / 1000));
      case "S":
        return two(date.getSeconds());
      case "t":
        return "\t";
      case "T":
      case "X":
        return `${one("H")}:${one("M")}:${one("S")}`;
      case "u":
        return String(mondayFirst + 1);
      case "U":
        return two(week(weekday));
      case "V":
        return two(iso.week);
      case "w":
        return String(weekday);
      case "W":
        return two(week(mondayFirst));
      case "y":
        return two(date.getFullYear() % 100);
      case "Y":
        return String(date.getFullYear());
      // A naive datetime has no zone.
      case "z":
      case "Z":
        return "";
      case "%":
        return "%";
      default:
        return null;
    }
  };
  return format.replace(/%-?([A-Za-z%])/g, (written, letter: string) => {
    const shown = one(letter);
    if (shown === null) return written;
    // glibc's "-": no padding.
    return written.startsWith("%-") ? shown.replace(/^[0 ]+(?=.)/, "") : shown;
  });
}

function isoWeek(midnight: Date): { year: number; week: number } {
  const thursday = new Date(midnight);
  thursday.setDate(midnight.getDate() + 3 - ((midnight.getDay() + 6) % 7));
  const year = thursday.getFullYear();
  const days = Math.round((thursday.getTime() - new Date(year, 0, 1).getTime()) / DAY_MS);
  return { year, week: Math.floor(days / 7) + 1 };
}
