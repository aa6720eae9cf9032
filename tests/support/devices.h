#pragma once
// The devices that tests run on: DSTRAIN_TEST_DEVICES, say "cpu,cuda"; cpu alone when it is not set. One that is asked
// for and absent fails the test that uses it.

#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

namespace dstrain::test {

inline std::vector<std::string> test_devices() {
  const char* const text = std::getenv("DSTRAIN_TEST_DEVICES");
  std::vector<std::string> names;
  std::stringstream list(text == nullptr || *text == '\0' ? "cpu" : text);
  for (std::string name; std::getline(list, name, ',');) names.push_back(name);
  return names;
}

inline bool tests_cuda() {
  for (const std::string& d : test_devices())
    if (d == "cuda") return true;
  return false;
}

}  // namespace dstrain::test
