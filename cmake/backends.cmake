# GPU backends, each a shared library of its own: polargrid_local/backends/vulkan.so, cuda.so, hip.so. The extension
# opens them at run time (csrc/backends/backends.cpp), so that one wheel serves machines with and without a driver.
# A part holds llama.cpp's backend and its own copy of ggml's base; the two meet only in ggml's table of functions.

# llama.cpp's folders call this for the library of a backend; theirs would link it into the extension.
function(ggml_add_backend_library name)
  add_library(${name} STATIC EXCLUDE_FROM_ALL ${ARGN})
  target_link_libraries(${name} PRIVATE ggml-base)
  target_include_directories(${name} PRIVATE "${PGL_LLAMA_CPP_DIR}/ggml/src")
endfunction()
include("${PGL_LLAMA_CPP_DIR}/ggml/cmake/common.cmake")   # helpers of theirs that the folders use

set(registers_CUDA ggml_backend_cuda_reg)
set(registers_HIP ggml_backend_cuda_reg)   # the same source, compiled by another compiler
set(registers_VULKAN ggml_backend_vk_reg)

foreach(api ${PGL_BACKENDS})
  string(TOLOWER ${api} name)
  add_subdirectory("${PGL_LLAMA_CPP_DIR}/ggml/src/ggml-${name}" "${CMAKE_BINARY_DIR}/backends/${name}" EXCLUDE_FROM_ALL)

  add_library(pgl_backend_${name} MODULE "${PROJECT_SOURCE_DIR}/csrc/backends/part.cpp")
  target_include_directories(pgl_backend_${name} PRIVATE "${PROJECT_SOURCE_DIR}/csrc")
  target_include_directories(pgl_backend_${name} SYSTEM PRIVATE "${PGL_LLAMA_CPP_DIR}/ggml/include")
  target_compile_definitions(pgl_backend_${name} PRIVATE PGL_BACKEND_REGISTER=${registers_${api}}
    PGL_OPEN_PART=${PGL_OPEN_PART})
  target_compile_options(pgl_backend_${name} PRIVATE ${PGL_WARNINGS})
  target_link_libraries(pgl_backend_${name} PRIVATE ggml-${name} ggml-base)
  # It finds the libraries of a toolkit where the linker found them.
  set_target_properties(pgl_backend_${name} PROPERTIES PREFIX "" OUTPUT_NAME ${name} INSTALL_RPATH_USE_LINK_PATH ON)
  if(NOT MSVC AND NOT APPLE)
    target_link_options(pgl_backend_${name} PRIVATE "LINKER:--exclude-libs,ALL" "LINKER:-Bsymbolic")
  endif()
  install(TARGETS pgl_backend_${name} LIBRARY DESTINATION polargrid_local/backends)
endforeach()

if(TARGET ggml-vulkan)
  # Vulkan-Hpp before 1.3.268 lacks names of one extension that ggml's Vulkan backend spells out.
  include(CheckCXXSourceCompiles)
  set(CMAKE_REQUIRED_INCLUDES ${Vulkan_INCLUDE_DIRS})
  check_cxx_source_compiles("#include <vulkan/vulkan.hpp>
    int main() { return vk::LayerSettingTypeEXT::eBool32 == vk::LayerSettingTypeEXT(); }" PGL_VULKAN_HPP_IS_NEW)
  if(NOT PGL_VULKAN_HPP_IS_NEW)
    target_compile_options(ggml-vulkan PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-include \"${PROJECT_SOURCE_DIR}/csrc/backends/old_vulkan_hpp.h\">")
  endif()
endif()
