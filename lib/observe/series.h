#pragma once
// metrics.jsonl read back: one column a key, and the points of a column that a plot draws.

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "lib/core/files.h"

namespace dstrain {

// A key of metrics.jsonl over the run. What is null there (not finite) is NaN here.
struct Series {
  std::vector<std::int64_t> steps;  // never falling
  std::vector<double> values;
};

// Reads `path`, a piece at a time. A last line without its end is a run's that is still writing or was killed: it is
// left out. A key that holds a list of numbers becomes a key each, with "." and the place in the list; lists within
// lists are passed over. Throws Error{data} with path and line for any other line that is not an object of numbers,
// nulls and lists with a step, has a key twice, goes back in steps, or is longer than 1 MiB; and past 1024 keys.
std::map<std::string, Series> read_metrics(const Files& files, const std::string& path);

// Which of `values` to draw, ascending: all of them up to twice `buckets`; else of each of `buckets` equal ranges its
// smallest, its largest and its first not finite one, and the first and last of all. No peak and no gap is lost.
std::vector<std::size_t> points_to_draw(std::span<const double> values, std::size_t buckets);

}  // namespace dstrain
