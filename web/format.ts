import { TAGS, useLanguage } from "./language.ts";

/** How numbers and times are written in a language. */
export interface Format {
  count(value: number): string;
  /** A measured number: as many digits as tell something. */
  number(value: number | null): string;
  bytes(value: number): string;
  ms(value: number): string;
  share(value: number): string;
  duration(seconds: number): string;
  time(ms: number | null): string;
  clock(ms: number): string;
}

export const NONE = "–";
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

const made = new Map<string, Format>();

export function useFormat(): Format {
  const tag = TAGS[useLanguage()];
  const format = made.get(tag) ?? formatOf(tag);
  made.set(tag, format);
  return format;
}

function formatOf(tag: string): Format {
  const whole = new Intl.NumberFormat(tag, { maximumFractionDigits: 0 });
  const four = new Intl.NumberFormat(tag, { maximumSignificantDigits: 4 });
  const one = new Intl.NumberFormat(tag, { maximumFractionDigits: 1 });
  const three = new Intl.NumberFormat(tag, { maximumSignificantDigits: 3 });
  const percent = new Intl.NumberFormat(tag, { style: "percent", maximumFractionDigits: 1 });
  const dates = new Intl.DateTimeFormat(tag, { dateStyle: "medium", timeStyle: "short" });
  const clocks = new Intl.DateTimeFormat(tag, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
  return {
    count: (value) => whole.format(value),
    number: (value) => {
      if (value === null) return NONE;
      const size = Math.abs(value);
      if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2);
      return size >= 1000 ? whole.format(value) : four.format(value);
    },
    bytes: (value) => {
      let [size, unit] = [value, 0];
      for (; size >= 1024 && unit < UNITS.length - 1; unit++) size /= 1024;
      return `${size >= 100 ? whole.format(size) : three.format(size)} ${UNITS[unit]}`;
    },
    ms: (value) => `${value >= 100 ? whole.format(value) : three.format(value)} ms`,
    share: (value) => percent.format(value),
    duration: (seconds) => {
      const total = Math.round(seconds);
      const [days, hours, minutes] = [
        Math.floor(total / 86400),
        Math.floor(total / 3600) % 24,
        Math.floor(total / 60) % 60,
      ];
      const two = (value: number) => String(value).padStart(2, "0");
      const tail = `${two(minutes)}:${two(total % 60)}`;
      if (days > 0) return `${one.format(days)} d ${hours}:${two(minutes)} h`;
      return hours > 0 ? `${hours}:${tail}` : tail;
    },
    time: (ms) => (ms === null ? NONE : dates.format(ms)),
    clock: (ms) => clocks.format(ms),
  };
}
