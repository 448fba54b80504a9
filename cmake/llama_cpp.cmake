# llama.cpp, static, out of the pinned llama-cpp-python source distribution (which vendors the whole tree).
# PGL_LLAMA_CPP_DIR replaces the download, for offline builds.

set(PGL_SDIST_VERSION 0.3.36)
set(PGL_SDIST_SHA256 832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e)

if(NOT PGL_LLAMA_CPP_DIR)
  find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)
  if(DEFINED ENV{XDG_CACHE_HOME})
    set(cache_root "$ENV{XDG_CACHE_HOME}")
  elseif(WIN32)
    set(cache_root "$ENV{LOCALAPPDATA}")
  else()
    set(cache_root "$ENV{HOME}/.cache")
  endif()
  # Outside the source tree and keyed by version: every checkout and every build shares one copy.
  set(fetch_dir "${cache_root}/polargrid_local/llama-cpp-python-${PGL_SDIST_VERSION}")
  set(tree "${fetch_dir}/llama_cpp_python-${PGL_SDIST_VERSION}/vendor/llama.cpp")
  set(sdist "${fetch_dir}/llama_cpp_python-${PGL_SDIST_VERSION}.tar.gz")
  file(MAKE_DIRECTORY "${fetch_dir}")
  file(LOCK "${fetch_dir}" DIRECTORY GUARD FILE TIMEOUT 900)

  if(NOT EXISTS "${fetch_dir}/unpacked")
    message(STATUS "Fetching llama-cpp-python ${PGL_SDIST_VERSION} (source distribution)")
    execute_process(
      COMMAND "${Python_EXECUTABLE}" -m pip download --quiet --no-deps --no-binary llama-cpp-python
              "llama-cpp-python==${PGL_SDIST_VERSION}" --dest "${fetch_dir}"
      RESULT_VARIABLE status ERROR_VARIABLE error)
    if(NOT status EQUAL 0)
      message(FATAL_ERROR "pip could not fetch llama-cpp-python ${PGL_SDIST_VERSION}:\n${error}\n"
              "Offline? Unpack that source distribution by hand and pass "
              "-DPGL_LLAMA_CPP_DIR=<it>/vendor/llama.cpp")
    endif()
    file(SHA256 "${sdist}" digest)
    if(NOT digest STREQUAL PGL_SDIST_SHA256)
      file(REMOVE "${sdist}")
      message(FATAL_ERROR "${sdist}: sha256 is ${digest}, expected ${PGL_SDIST_SHA256}")
    endif()
    # Python's tarfile keeps the packed mtimes, so a re-fetch does not dirty every object.
    execute_process(
      COMMAND "${Python_EXECUTABLE}" -c
              "import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])" "${sdist}" "${fetch_dir}"
      COMMAND_ERROR_IS_FATAL ANY)
    file(REMOVE "${sdist}")
    file(TOUCH "${fetch_dir}/unpacked")
  endif()
  set(PGL_LLAMA_CPP_DIR "${tree}")
endif()

if(NOT EXISTS "${PGL_LLAMA_CPP_DIR}/include/llama.h")
  message(FATAL_ERROR "PGL_LLAMA_CPP_DIR=${PGL_LLAMA_CPP_DIR} holds no llama.cpp tree (include/llama.h is missing)")
endif()

set(BUILD_SHARED_LIBS OFF)
foreach(part TESTS EXAMPLES APP UI)
  set(LLAMA_BUILD_${part} OFF CACHE INTERNAL "")
endforeach()
foreach(part COMMON TOOLS SERVER)   # llama.cpp's own programs: what benchmarks compare with, nothing of the product
  set(LLAMA_BUILD_${part} ${PGL_BENCHMARKS} CACHE INTERNAL "")
endforeach()
set(LLAMA_OPENSSL OFF CACHE INTERNAL "")
set(LLAMA_ALL_WARNINGS OFF CACHE INTERNAL "")
set(GGML_CCACHE OFF CACHE INTERNAL "")   # the launcher above covers every target
set(GGML_RPC OFF CACHE INTERNAL "")
# ggml compiles in the commit of whatever repository it finds around it, and so rebuilds after every commit: show it none.
set(GIT_EXE "${CMAKE_COMMAND}" CACHE INTERNAL "")
if(PGL_PORTABLE)
  set(GGML_NATIVE OFF CACHE BOOL "" FORCE)
else()
  option(GGML_NATIVE "ggml: optimise for this machine" ON)
endif()

# GPU backends become parts of their own beside the extension, which loads them where a driver is there (backends.cmake).
set(PGL_BACKENDS "")
string(MAKE_C_IDENTIFIER "polargrid_backend_${PGL_SDIST_VERSION}" PGL_OPEN_PART)   # a part of another version has another
foreach(api CUDA HIP VULKAN)
  if(GGML_${api})
    list(APPEND PGL_BACKENDS ${api})
    set(GGML_${api} OFF)   # hides the user's cache entry from llama.cpp, which would link the backend in
  endif()
endforeach()

add_subdirectory("${PGL_LLAMA_CPP_DIR}" "${CMAKE_BINARY_DIR}/llama.cpp" EXCLUDE_FROM_ALL)
