#include "lib/tokenizer/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>

#include "lib/core/errors.h"
#include "lib/tokenizer/utf8.h"

namespace dstrain::unicode {

CodeTable::CodeTable(std::vector<Range> ranges) : ranges_(std::move(ranges)), low_(0x10000 / 64) {
  for (const Range& r : ranges_)
    for (std::uint32_t c = r.first; c <= r.last && c < 0x10000; ++c) low_[c >> 6] |= 1ull << (c & 63);
}

bool CodeTable::has_high(std::uint32_t code) const {
  const auto after = std::upper_bound(ranges_.begin(), ranges_.end(), code,
                                      [](std::uint32_t c, const Range& r) { return c < r.first; });
  return after != ranges_.begin() && code <= std::prev(after)->last;
}

void append_lower(std::string& out, std::uint32_t code) {
  if (code < 0x80) {
    out += static_cast<char>(code >= 'A' && code <= 'Z' ? code + 32 : code);
    return;
  }
  const auto other = std::lower_bound(kLower.begin(), kLower.end(), code,
                                      [](const LowerCase& l, std::uint32_t c) { return l.code < c; });
  if (other == kLower.end() || other->code != code) {
    utf8::append(out, static_cast<std::uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code))));
    return;
  }
  utf8::append(out, other->first);
  if (other->second != 0) utf8::append(out, other->second);
}

namespace {

int combining_class(utf8proc_int32_t code) { return utf8proc_get_property(code)->combining_class; }

// Normalises `text`, whose characters are all in kActive.
void normalize_active(std::string& out, std::string_view text, Form form, std::vector<utf8proc_int32_t>& codes) {
  int options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE;
  if (form == Form::nfkc || form == Form::nfkd) options |= UTF8PROC_COMPAT;
  codes.clear();
  for (std::size_t i = 0; i < text.size();) {
    const auto [code, size] = utf8::decode(text, i);
    i += size;
    std::array<utf8proc_int32_t, 32> parts;
    int boundary = 0;
    const auto n = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(code), parts.data(),
                                           static_cast<utf8proc_ssize_t>(parts.size()),
                                           static_cast<utf8proc_option_t>(options), &boundary);
    check(n >= 0 && n <= static_cast<utf8proc_ssize_t>(parts.size()), "utf8proc answers {} for U+{:x}", n, code);
    codes.insert(codes.end(), parts.begin(), parts.begin() + n);
  }
  // Canonical order. utf8proc's own sort is quadratic in a run of marks.
  for (std::size_t i = 0; i < codes.size();) {
    if (combining_class(codes[i]) == 0) {
      ++i;
      continue;
    }
    std::size_t end = i + 1;
    while (end < codes.size() && combining_class(codes[end]) != 0) ++end;
    std::stable_sort(codes.begin() + static_cast<std::ptrdiff_t>(i), codes.begin() + static_cast<std::ptrdiff_t>(end),
                     [](utf8proc_int32_t a, utf8proc_int32_t b) { return combining_class(a) < combining_class(b); });
    i = end;
  }
  if (form == Form::nfc || form == Form::nfkc) {
    const auto n = utf8proc_normalize_utf32(codes.data(), static_cast<utf8proc_ssize_t>(codes.size()),
                                            static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    check(n >= 0, "utf8proc answers {}", n);
    codes.resize(static_cast<std::size_t>(n));
  }
  for (const auto c : codes) utf8::append(out, static_cast<std::uint32_t>(c));
}

}  // namespace

void append_normal_form(std::string& out, std::string_view text, Form form) {
  // Up to here, no character changes, unless a mark follows it.
  const std::uint32_t plain = form == Form::nfc ? 0x300 : form == Form::nfd ? 0xc0 : 0xa0;
  std::vector<utf8proc_int32_t> codes;
  std::size_t done = 0;
  while (done < text.size()) {
    // A span without active characters, or of plain ones, stays. The last plain character before an active one goes
    // with it.
    std::size_t i = done, last = done;
    while (i < text.size()) {
      const auto [code, size] = utf8::decode(text, i);
      if (code >= plain && kActive.has(code)) break;
      last = code < plain ? i : i + size;
      i += size;
    }
    if (i == text.size()) last = i;
    out.append(text, done, last - done);
    done = last;
    if (done == text.size()) break;
    // An active span: to the first inactive character, or to the second of two plain ones.
    std::size_t end = done;
    bool was_plain = false;
    while (end < text.size()) {
      const auto [code, size] = utf8::decode(text, end);
      if (!kActive.has(code)) {
        if (end == done) end += size;  // an inactive plain character goes alone
        break;
      }
      if (code < plain && was_plain) break;
      was_plain = code < plain;
      end += size;
    }
    normalize_active(out, text.substr(done, end - done), form, codes);
    done = end;
  }
}

}  // namespace dstrain::unicode
