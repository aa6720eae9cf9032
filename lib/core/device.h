#pragma once

namespace dstrain {

// Where an op runs. On `dry`, launch() validates and counts and nothing is computed or stored.
enum class Device : unsigned char { cpu, cuda, dry };

constexpr const char* name_of(Device d) { return d == Device::cpu ? "cpu" : d == Device::cuda ? "cuda" : "dry"; }

}  // namespace dstrain
