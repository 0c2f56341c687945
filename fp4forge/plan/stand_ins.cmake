# What vLLM's CMake files meet instead of a project, a compiler and the network, so that `cmake -P`
# runs them. Commands that make nothing of an architecture do nothing here. Any other command that
# script mode lacks stops CMake, which names the file and line.
#
# VERSION is the compiler's, ASKED an array of architectures (12.0a;8.0+PTX) separated by |, CUTLASS
# a folder with the header whose existence vLLM tests. Each list appends to RESULT what
# set_property(SOURCE) was given, a line for each call, and a line "--".
cmake_minimum_required(VERSION 3.26)

foreach(command
    add_custom_command add_custom_target add_dependencies add_library enable_language find_library
    find_package find_program include_directories install project set_source_files_properties
    set_target_properties target_compile_definitions target_compile_options
    target_include_directories target_link_libraries target_sources
    FetchContent_Declare FetchContent_GetProperties Python_add_library)
  cmake_language(EVAL CODE "function(${command})\nendfunction()")
endforeach()

macro(include name)
  if(NOT "${name}" STREQUAL "FetchContent")
    _include("${name}")
  endif()
endmacro()

# Python is asked for flags and generates sources: neither decides what is compiled for what.
function(execute_process)
  cmake_parse_arguments(asked "" "RESULT_VARIABLE;OUTPUT_VARIABLE" "" ${ARGN})
  if(asked_OUTPUT_VARIABLE)
    set(${asked_OUTPUT_VARIABLE} "" PARENT_SCOPE)
  endif()
  if(asked_RESULT_VARIABLE)
    set(${asked_RESULT_VARIABLE} 0 PARENT_SCOPE)
  endif()
endfunction()

# A pattern stands for the files that it would find: some are generated, some fetched.
function(file command)
  set(rest ${ARGN})
  if(command MATCHES "^GLOB")
    list(POP_FRONT rest variable)
    list(REMOVE_ITEM rest CONFIGURE_DEPENDS)
    set(${variable} "${rest}" PARENT_SCOPE)
  elseif(command STREQUAL "REAL_PATH")
    set(${ARGV2} "${ARGV1}" PARENT_SCOPE)
  elseif(command MATCHES "^(READ|MD5)$")
    set(${ARGV2} "0" PARENT_SCOPE)
  elseif(NOT command MATCHES "^(MAKE_DIRECTORY|WRITE)$")
    message(FATAL_ERROR "file(${command}) has no stand-in")
  endif()
endfunction()

# vllm-flash-attn's CMake is not in vLLM's sdist. Read from vllm-project/flash-attention at
# 01ed8aa91c9bd24cbc676037fe7b005d099b25c5; published wheels hold just that.
macro(FetchContent_MakeAvailable name)
  set(${name}_SOURCE_DIR ${name})
  if("${name}" STREQUAL "cutlass")
    set(CUTLASS_INCLUDE_DIR ${CUTLASS})
  elseif("${name}" STREQUAL "vllm-flash-attn")
    cuda_archs_loose_intersection(FA2_ARCHS "8.0+PTX" "${CUDA_ARCHS}")
    set_gencode_flags_for_srcs(
      SRCS "${name}/csrc/flash_attn/src/flash_fwd_*.cu" CUDA_ARCHS "${FA2_ARCHS}")
    cuda_archs_loose_intersection(FA3_ARCHS "9.0a" "${CUDA_ARCHS}")
    set_gencode_flags_for_srcs(
      SRCS "${name}/hopper/instantiations/flash_fwd_*_sm90.cu" CUDA_ARCHS "${FA3_ARCHS}")
  endif()
endmacro()
macro(FetchContent_Populate name)
  FetchContent_MakeAvailable(${name})
endmacro()

function(set_property scope)
  if(scope STREQUAL "SOURCE")
    _set_property(GLOBAL APPEND_STRING PROPERTY FP4FORGE_SET "${ARGN}\n")
  endif()
endfunction()

# What the caller and the packages that were found would have set.
set(VLLM_PYTHON_EXECUTABLE python)
set(Python_FOUND ON)
set(Python_VERSION_MAJOR 3)
set(Python_VERSION_MINOR 12)
set(CUDA_FOUND ON)
set(NVCC_EXECUTABLE nvcc)
set(CMAKE_CUDA_COMPILER_VERSION ${VERSION})
set(FETCHCONTENT_BASE_DIR externals)

function(evaluate flags)
  set(CMAKE_CUDA_FLAGS "${flags}")
  _set_property(GLOBAL PROPERTY FP4FORGE_SET "")
  _include("${SCRIPT}")
  get_property(lines GLOBAL PROPERTY FP4FORGE_SET)
  _file(APPEND "${RESULT}" "${lines}--\n")
endfunction()

# torch's flags for a list (torch, share/cmake/Caffe2/Modules_CUDA_fix/select_compute_arch.cmake).
string(REPLACE "|" ";" asked "${ASKED}")
foreach(entries IN LISTS asked)
  string(REPLACE "," ";" entries "${entries}")
  set(flags)
  foreach(entry IN LISTS entries)
    string(REGEX REPLACE "[.]|[+]PTX" "" number "${entry}")
    string(APPEND flags " -gencode arch=compute_${number},code=sm_${number}")
    if(entry MATCHES "[+]PTX$")
      string(APPEND flags " -gencode arch=compute_${number},code=compute_${number}")
    endif()
  endforeach()
  evaluate("${flags}")
endforeach()
