# Compiler settings, and the two functions that every folder uses.
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_CXX_EXTENSIONS OFF)
find_program(DSTRAIN_CCACHE ccache)
if(DSTRAIN_CCACHE)
  set(CMAKE_C_COMPILER_LAUNCHER ${DSTRAIN_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${DSTRAIN_CCACHE})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${DSTRAIN_CCACHE})
endif()

add_library(dstrain_options INTERFACE)
target_compile_features(dstrain_options INTERFACE cxx_std_20)
target_include_directories(dstrain_options INTERFACE ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR}/generated)
# x86-64-v3, never native: binaries travel. No contraction of a*b+c in C++ source across statements changes meaning here:
# every build on this architecture contracts alike. errno and traps of floating point are not used.
set(DSTRAIN_CXX_OPTIONS
  -march=x86-64-v3 -fno-math-errno -fno-trapping-math -fstack-protector-strong -g1
  -Wall -Wextra -Wpedantic -Wshadow
  -Wno-missing-field-initializers)  # designated initializers may leave optional fields out
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  list(APPEND DSTRAIN_CXX_OPTIONS -Wno-restrict)  # GCC 12 is wrong about std::string + char (its bug 105651)
endif()
# nvcc hands the host part on; -Wpedantic dislikes the lines that it writes itself.
set(DSTRAIN_CUDA_OPTIONS -std=c++20 -Xcompiler=-march=x86-64-v3,-Wall,-Wextra,-Wno-missing-field-initializers --expt-relaxed-constexpr
  --extended-lambda -lineinfo -diag-suppress=20012)
if(DSTRAIN_WERROR)
  list(APPEND DSTRAIN_CXX_OPTIONS -Werror)
  list(APPEND DSTRAIN_CUDA_OPTIONS -Werror=all-warnings -Xcompiler=-Werror)
endif()
target_compile_options(dstrain_options INTERFACE
  "$<$<COMPILE_LANGUAGE:C,CXX>:${DSTRAIN_CXX_OPTIONS}>" "$<$<COMPILE_LANGUAGE:CUDA>:${DSTRAIN_CUDA_OPTIONS}>")
if(DSTRAIN_SANITIZE)
  # Under -Og, code is made in two thirds of what -O1 takes; what runs long says so by the property HOT. GCC 12 sees
  # uninitialised members once sanitizers change its inlining.
  target_compile_options(dstrain_options INTERFACE
    "$<$<COMPILE_LANGUAGE:C,CXX>:-O$<IF:$<BOOL:$<TARGET_PROPERTY:HOT>>,1,g>;-fsanitize=${DSTRAIN_SANITIZE};-fno-sanitize-recover=all;-fno-omit-frame-pointer;-Wno-maybe-uninitialized>")
  target_link_options(dstrain_options INTERFACE -fsanitize=${DSTRAIN_SANITIZE})
endif()
if(DSTRAIN_FUZZ_COVERAGE)
  target_compile_options(dstrain_options INTERFACE "$<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize-coverage=trace-pc>")
endif()
target_link_options(dstrain_options INTERFACE -Wl,-z,relro,-z,now)
find_program(DSTRAIN_MOLD mold)
if(DSTRAIN_MOLD)
  target_link_options(dstrain_options INTERFACE -fuse-ld=mold)
endif()

# dstrain_library(NAME SOURCES ... LINK ...): one static library, dstrain_NAME, for the folder.
function(dstrain_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;LINK" ${ARGN})
  add_library(dstrain_${name} STATIC ${arg_SOURCES})
  target_link_libraries(dstrain_${name} PUBLIC dstrain_options ${arg_LINK})
endfunction()
