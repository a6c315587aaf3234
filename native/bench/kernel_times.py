"""Sums a profiler's kernel durations by kernel. usage: kernel_times.py PROFILE.csv (ncu --metrics gpu__time_duration.sum --csv)"""
import collections
import csv
import re
import sys

lines = [line for line in open(sys.argv[1], encoding="utf8") if line.startswith('"')]
total, count = collections.Counter(), collections.Counter()
for row in csv.DictReader(lines):
    if row.get("Metric Name") != "gpu__time_duration.sum":
        continue
    scale = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3}[row["Metric Unit"]]
    name = re.sub(r"\(.*", "", row["Kernel Name"].replace("(anonymous namespace)::", ""))
    name = re.sub(r"^void ", "", name).replace("pipelora::cuda::", "")
    total[name] += float(row["Metric Value"].replace(",", "")) * scale
    count[name] += 1
everything = sum(total.values())
for name, us in total.most_common(40):
    print(f"{us / 1e3:9.3f} ms {100 * us / everything:5.1f} % {count[name]:6d} x {us / count[name]:9.1f} us  {name[:110]}")
print(f"{everything / 1e3:9.3f} ms in {sum(count.values())} kernels")
