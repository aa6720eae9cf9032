#pragma once
// Catch2 version 2 (Debian 12) and 3 (Ubuntu 24.04) under one name. Approx is not offered: tolerances are derived.
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif
