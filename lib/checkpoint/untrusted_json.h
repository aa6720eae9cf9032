#pragma once
// JSON of files that others wrote, read as it comes: nothing is kept of it but what the reader keeps, so that a file
// costs no more memory than its own size. Nesting is bounded, and no key of an object may repeat.

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "lib/core/errors.h"

namespace dstrain {

// What is met, in order. Handlers throw to refuse it.
class JsonReader {
 public:
  static constexpr std::size_t kDeepest = 8;
  virtual ~JsonReader() = default;

  virtual void text(const std::string& value) = 0;
  virtual void number(std::uint64_t value) = 0;
  // null, true, false, a negative number or a fraction.
  virtual void other() = 0;
  virtual void opened(bool list) = 0;  // path() is its own place
  virtual void closed() {}             // the same place

  // The keys that lead to what is met; "" for an element of a list.
  const std::vector<std::string>& path() const { return path_; }
  // Its place among the elements of its list.
  std::size_t element() const { return element_; }

 private:
  friend class JsonEvents;
  std::vector<std::string> path_;
  std::size_t element_ = 0;
};

// Throws Error{data} beginning with `where` when the text is no JSON, repeats a key or is nested deeper than kDeepest;
// and whatever the reader throws.
void read_json(const std::string& text, const std::string& where, JsonReader& reader);

// The text in quotes for a message: control characters and bytes that are no UTF-8 escaped, cut after 100 bytes.
std::string quote(const std::string& text);

}  // namespace dstrain
