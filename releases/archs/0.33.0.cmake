# What decides architectures in the CMake files of vLLM 0.33.0's sdist; `build.py arch extract`
# cuts it out. Copyright contributors to the vLLM project; SPDX-License-Identifier: Apache-2.0.
# SHA-256 of the files read:
#   65c46da5a87a75e2d561a4f511277ad75d656fb5b48c569e1e3e45eec677395a  CMakeLists.txt
#   c982391e700eb61eb3d2fde56cfd2a50c8eb135746b3d8559b300943f2e7c476  cmake/utils.cmake
#   a769802de06e9d8ee2e2f130c46d26dafce7dc808f28aecd59e4048f24fdb20d  cmake/external_projects/triton_kernels.cmake
#   102df0f893a50ed51531348c5928f679d412e991455953b6cce524be66b0f1f7  cmake/external_projects/deepgemm.cmake
#   52efa1604dc2a1f9979f330ffebf9f0fa8cd9d01b6e1f8969207483992888a4b  cmake/external_projects/deepselect.cmake
#   4636dd19eae09c0148d27ebf72b0dc6e1b7b8507f22e035b2ac3aa08e38d6efa  cmake/external_projects/fmha_sm100.cmake
#   2225bd6870276c1c7d0a3350ca095911f1840fab672440327de1e9d113f6ba23  cmake/external_projects/flashmla.cmake
#   e1372e8f605c33bc7b9aae86b3c460128d2f91470187fec9003782d4352d8ac7  cmake/external_projects/flashkda.cmake
#   a6b09424d2b9afc37370d0ca4f910561e271e9e5d203d4dbd8584a984d04eea9  cmake/external_projects/qutlass.cmake
#   dbd0a6e25a5af92d1d8d92ef87e193ef451ce947b01b397a7a1c5a5ded505bfe  cmake/external_projects/tml_fa4.cmake
#   ab64a32d61096f6ed57e9ca966339d29964d0d5bbae7ed7a69b25b96f9ee1530  cmake/external_projects/vllm_flash_attn.cmake
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS "11.3")
  message(FATAL_ERROR
      "GCC >= 11.3 is required to build vLLM (found ${CMAKE_CXX_COMPILER_VERSION}). "
      "PyTorch's C++20 headers require a compiler with full C++20 support. "
      "See: https://github.com/pytorch/pytorch/pull/167929")
endif()
set(VLLM_TARGET_DEVICE "cuda" CACHE STRING "Target device backend for vLLM")
function(run_python OUT EXPR ERR_MSG)
  execute_process(COMMAND
      "${Python_EXECUTABLE}" "-c" "${EXPR}"
      OUTPUT_VARIABLE PYTHON_OUT
      RESULT_VARIABLE PYTHON_ERROR_CODE
      ERROR_VARIABLE PYTHON_STDERR
      OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT PYTHON_ERROR_CODE EQUAL 0)
    message(FATAL_ERROR "${ERR_MSG}: ${PYTHON_STDERR}")
  endif()
  set(${OUT} ${PYTHON_OUT} PARENT_SCOPE)
endfunction()
macro(append_cmake_prefix_path PKG EXPR)
  run_python(_PREFIX_PATH
      "import ${PKG}; print(${EXPR})" "Failed to locate ${PKG} path")
endmacro()
macro(string_to_ver OUT_VER IN_STR)
  string(REGEX REPLACE "\([0-9]+\)\([0-9][af]?\)" "\\1.\\2" ${OUT_VER} ${IN_STR})
endmacro()
macro(clear_cuda_gencode_flags CUDA_ARCH_FLAGS)
  string(REGEX MATCHALL "-gencode arch=[^ ]+" CUDA_ARCH_FLAGS
      ${CMAKE_CUDA_FLAGS})
  string(REGEX REPLACE "-gencode arch=[^ ]+ *" "" CMAKE_CUDA_FLAGS
      ${CMAKE_CUDA_FLAGS})
endmacro()
function(extract_unique_cuda_archs_ascending OUT_ARCHES CUDA_ARCH_FLAGS)
  set(_CUDA_ARCHES)
  foreach(_ARCH ${CUDA_ARCH_FLAGS})
    string(REGEX MATCH "code=sm_\([0-9]+[af]?\)" _COMPUTE ${_ARCH})
    if(NOT _COMPUTE)
      string(REGEX MATCH "arch=compute_\([0-9]+[af]?\)" _COMPUTE ${_ARCH})
    endif()
    if(_COMPUTE)
      set(_COMPUTE ${CMAKE_MATCH_1})
    endif()
    string_to_ver(_COMPUTE_VER ${_COMPUTE})
    list(APPEND _CUDA_ARCHES ${_COMPUTE_VER})
  endforeach()
  list(REMOVE_DUPLICATES _CUDA_ARCHES)
  list(SORT _CUDA_ARCHES COMPARE NATURAL ORDER ASCENDING)
  set(${OUT_ARCHES} ${_CUDA_ARCHES} PARENT_SCOPE)
endfunction()
macro(set_gencode_flag_for_srcs)
  set(options)
  set(oneValueArgs ARCH CODE)
  set(multiValueArgs SRCS)
  cmake_parse_arguments(arg "${options}" "${oneValueArgs}"
      "${multiValueArgs}" ${ARGN})
  set(_FLAG -gencode arch=${arg_ARCH},code=${arg_CODE})
  set_property(SOURCE ${arg_SRCS}
      APPEND PROPERTY
      COMPILE_OPTIONS "$<$<COMPILE_LANGUAGE:CUDA>:${_FLAG}>")
endmacro(set_gencode_flag_for_srcs)
macro(set_gencode_flags_for_srcs)
  set(options)
  set(oneValueArgs BUILD_PTX_FOR_ARCH)
  set(multiValueArgs SRCS CUDA_ARCHS)
  cmake_parse_arguments(arg "${options}" "${oneValueArgs}"
      "${multiValueArgs}" ${ARGN})
  foreach(_ARCH ${arg_CUDA_ARCHS})
    string(FIND "${_ARCH}" "+PTX" _HAS_PTX)
    if(NOT _HAS_PTX EQUAL -1)
      string(REPLACE "+PTX" "" _BASE_ARCH "${_ARCH}")
      string(REPLACE "." "" _STRIPPED_ARCH "${_BASE_ARCH}")
      set_gencode_flag_for_srcs(SRCS ${arg_SRCS}
          ARCH "compute_${_STRIPPED_ARCH}"
          CODE "sm_${_STRIPPED_ARCH}")
      set_gencode_flag_for_srcs(SRCS ${arg_SRCS}
          ARCH "compute_${_STRIPPED_ARCH}"
          CODE "compute_${_STRIPPED_ARCH}")
    else()
      string(REPLACE "." "" _STRIPPED_ARCH "${_ARCH}")
      set_gencode_flag_for_srcs(SRCS ${arg_SRCS}
          ARCH "compute_${_STRIPPED_ARCH}"
          CODE "sm_${_STRIPPED_ARCH}")
    endif()
  endforeach()
  if(${arg_BUILD_PTX_FOR_ARCH})
    list(SORT arg_CUDA_ARCHS COMPARE NATURAL ORDER ASCENDING)
    list(GET arg_CUDA_ARCHS -1 _HIGHEST_ARCH)
    if(_HIGHEST_ARCH VERSION_GREATER_EQUAL ${arg_BUILD_PTX_FOR_ARCH})
      string(REPLACE "." "" _PTX_ARCH "${arg_BUILD_PTX_FOR_ARCH}")
      set_gencode_flag_for_srcs(SRCS ${arg_SRCS}
          ARCH "compute_${_PTX_ARCH}"
          CODE "compute_${_PTX_ARCH}")
    endif()
  endif()
endmacro()
function(cuda_archs_loose_intersection OUT_CUDA_ARCHS SRC_CUDA_ARCHS TGT_CUDA_ARCHS)
  set(_SRC_CUDA_ARCHS "${SRC_CUDA_ARCHS}")
  set(_TGT_CUDA_ARCHS ${TGT_CUDA_ARCHS})
  set(_PTX_ARCHS)
  foreach(_arch ${_SRC_CUDA_ARCHS})
    if(_arch MATCHES "\\+PTX$")
      string(REPLACE "+PTX" "" _base "${_arch}")
      list(APPEND _PTX_ARCHS "${_base}")
      list(REMOVE_ITEM _SRC_CUDA_ARCHS "${_arch}")
      list(APPEND _SRC_CUDA_ARCHS "${_base}")
    endif()
  endforeach()
  list(REMOVE_DUPLICATES _PTX_ARCHS)
  list(REMOVE_DUPLICATES _SRC_CUDA_ARCHS)
  set(_CUDA_ARCHS)
  foreach(_arch ${_SRC_CUDA_ARCHS})
    if(_arch MATCHES "[af]$")
      string(REGEX REPLACE "[af]$" "" _base "${_arch}")
      if("${_base}" IN_LIST _TGT_CUDA_ARCHS)
        list(REMOVE_ITEM _SRC_CUDA_ARCHS "${_arch}")
        list(REMOVE_ITEM _TGT_CUDA_ARCHS "${_base}")
        list(REMOVE_ITEM _TGT_CUDA_ARCHS "${_base}a" "${_base}f")
        list(APPEND _CUDA_ARCHS "${_arch}")
      endif()
    endif()
  endforeach()
  foreach(_arch ${_SRC_CUDA_ARCHS})
    if(_arch MATCHES "[af]$")
      list(REMOVE_ITEM _SRC_CUDA_ARCHS "${_arch}")
      string(REGEX REPLACE "[af]$" "" _base "${_arch}")
      if("${_base}a" IN_LIST _TGT_CUDA_ARCHS)
        list(REMOVE_ITEM _TGT_CUDA_ARCHS "${_base}a")
        list(APPEND _CUDA_ARCHS "${_base}a")
      elseif("${_base}f" IN_LIST _TGT_CUDA_ARCHS)
        list(REMOVE_ITEM _TGT_CUDA_ARCHS "${_base}f")
        list(APPEND _CUDA_ARCHS "${_base}f")
      elseif(_arch MATCHES "f$")
        string(REGEX REPLACE "^([0-9]+)\\..*$" "\\1" _src_major "${_base}")
        foreach(_tgt ${_TGT_CUDA_ARCHS})
          string(REGEX REPLACE "[af]$" "" _tgt_base "${_tgt}")
          string(REGEX REPLACE "^([0-9]+)\\..*$" "\\1" _tgt_major "${_tgt_base}")
          if(_tgt_major STREQUAL _src_major)
            list(REMOVE_ITEM _TGT_CUDA_ARCHS "${_tgt}")
            list(APPEND _CUDA_ARCHS "${_tgt}")
            break()
          endif()
        endforeach()
      endif()
    endif()
  endforeach()
  set(_tgt_copy ${_TGT_CUDA_ARCHS})
  foreach(_arch ${_tgt_copy})
    if(_arch MATCHES "[af]$")
      string(REGEX REPLACE "[af]$" "" _base "${_arch}")
      if("${_base}" IN_LIST _SRC_CUDA_ARCHS)
        list(REMOVE_ITEM _TGT_CUDA_ARCHS "${_arch}")
        list(APPEND _CUDA_ARCHS "${_arch}")
        if(NOT "${_base}" IN_LIST _TGT_CUDA_ARCHS)
          list(REMOVE_ITEM _SRC_CUDA_ARCHS "${_base}")
        endif()
      endif()
    endif()
  endforeach()
  list(SORT _SRC_CUDA_ARCHS COMPARE NATURAL ORDER ASCENDING)
  foreach(_ARCH ${_TGT_CUDA_ARCHS})
    set(_TMP_ARCH)
    string(REGEX REPLACE "^([0-9]+)\\..*$" "\\1" TGT_ARCH_MAJOR "${_ARCH}")
    foreach(_SRC_ARCH ${_SRC_CUDA_ARCHS})
      string(REGEX REPLACE "^([0-9]+)\\..*$" "\\1" SRC_ARCH_MAJOR "${_SRC_ARCH}")
      if(_SRC_ARCH VERSION_LESS_EQUAL _ARCH)
        if(_SRC_ARCH IN_LIST _PTX_ARCHS OR SRC_ARCH_MAJOR STREQUAL TGT_ARCH_MAJOR)
          set(_TMP_ARCH "${_SRC_ARCH}")
        endif()
      else()
        break()
      endif()
    endforeach()
    if(_TMP_ARCH)
      list(APPEND _CUDA_ARCHS "${_TMP_ARCH}")
    endif()
  endforeach()
  list(REMOVE_DUPLICATES _CUDA_ARCHS)
  set(_FINAL_ARCHS)
  foreach(_arch ${_CUDA_ARCHS})
    if(_arch IN_LIST _PTX_ARCHS)
      list(APPEND _FINAL_ARCHS "${_arch}+PTX")
    else()
      list(APPEND _FINAL_ARCHS "${_arch}")
    endif()
  endforeach()
  set(_CUDA_ARCHS ${_FINAL_ARCHS})
  set(${OUT_CUDA_ARCHS} ${_CUDA_ARCHS} PARENT_SCOPE)
endfunction()
function(cuda_archs_sm90plus OUT_CUDA_ARCHS TGT_CUDA_ARCHS)
  if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.0)
    cuda_archs_loose_intersection(_archs "9.0a;10.0f;10.7f;11.0f;12.0f" "${TGT_CUDA_ARCHS}")
  else()
    cuda_archs_loose_intersection(_archs "9.0a;10.0a;10.1a;10.3a;12.0a;12.1a" "${TGT_CUDA_ARCHS}")
  endif()
  set(${OUT_CUDA_ARCHS} ${_archs} PARENT_SCOPE)
endfunction()
macro(override_gpu_arches GPU_ARCHES GPU_LANG GPU_SUPPORTED_ARCHES)
  set(_GPU_SUPPORTED_ARCHES_LIST ${GPU_SUPPORTED_ARCHES} ${ARGN})
  if(${GPU_LANG} STREQUAL "HIP")
    if(DEFINED ENV{PYTORCH_ROCM_ARCH})
      set(HIP_ARCHITECTURES $ENV{PYTORCH_ROCM_ARCH})
    else()
      set(HIP_ARCHITECTURES ${CMAKE_HIP_ARCHITECTURES})
    endif()
    set(${GPU_ARCHES})
    foreach(_ARCH ${HIP_ARCHITECTURES})
      if(_ARCH IN_LIST _GPU_SUPPORTED_ARCHES_LIST)
        list(APPEND ${GPU_ARCHES} ${_ARCH})
      endif()
    endforeach()
    if(NOT ${GPU_ARCHES})
      message(FATAL_ERROR
          "None of the detected ROCm architectures: ${HIP_ARCHITECTURES} is"
          " supported. Supported ROCm architectures are: ${_GPU_SUPPORTED_ARCHES_LIST}.")
    endif()
  endif()
endmacro()
if(NOT DEFINED ROCM_PATH)
  set(ROCM_PATH "/opt/rocm" CACHE PATH "ROCm installation prefix")
else()
  set(ROCM_PATH ${ROCM_PATH} CACHE PATH "ROCm installation prefix" FORCE)
endif()
if(VLLM_PYTHON_EXECUTABLE)
else()
  message(FATAL_ERROR
      "Please set VLLM_PYTHON_EXECUTABLE to the path of the desired python version"
      " before running cmake configure.")
endif()
append_cmake_prefix_path("torch" "torch.utils.cmake_prefix_path")
if(CUDA_FOUND AND NOT NVCC_EXECUTABLE)
  message(FATAL_ERROR "nvcc not found")
endif()
if(DEFINED CMAKE_CUDA_COMPILER_VERSION AND
    CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13.4)
  set(CUDA_SUPPORTED_ARCHS "7.5;8.0;8.6;8.7;8.9;9.0;10.0;10.7;11.0;12.0")
elseif(DEFINED CMAKE_CUDA_COMPILER_VERSION AND
    CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13.0)
  set(CUDA_SUPPORTED_ARCHS "7.5;8.0;8.6;8.7;8.9;9.0;10.0;11.0;12.0")
elseif(DEFINED CMAKE_CUDA_COMPILER_VERSION AND
    CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
  set(CUDA_SUPPORTED_ARCHS "7.5;8.0;8.6;8.7;8.9;9.0;10.0;10.1;10.3;12.0;12.1")
else()
  set(CUDA_SUPPORTED_ARCHS "7.0;7.5;8.0;8.6;8.7;8.9;9.0")
endif()
if(NOT VLLM_TARGET_DEVICE STREQUAL "cuda" AND
    NOT VLLM_TARGET_DEVICE STREQUAL "rocm")
  if(VLLM_TARGET_DEVICE STREQUAL "cpu")
  else()
    return()
  endif()
  return()
endif()
if(NOT HIP_FOUND AND NOT PYTORCH_FOUND_HIP AND CUDA_FOUND)
  set(VLLM_GPU_LANG "CUDA")
elseif(HIP_FOUND OR PYTORCH_FOUND_HIP)
  set(VLLM_GPU_LANG "HIP")
else()
  message(FATAL_ERROR "Can't find CUDA or HIP installation.")
endif()
if(VLLM_GPU_LANG STREQUAL "CUDA")
  clear_cuda_gencode_flags(CUDA_ARCH_FLAGS)
  extract_unique_cuda_archs_ascending(CUDA_ARCHS "${CUDA_ARCH_FLAGS}")
  cuda_archs_loose_intersection(CUDA_ARCHS
      "${CUDA_SUPPORTED_ARCHS}" "${CUDA_ARCHS}")
  if(NOT CUDA_ARCHS)
    message(FATAL_ERROR
        "No supported CUDA architectures; the build would produce a binary "
        "with no usable kernels. Detected gencode flags: ${CUDA_ARCH_FLAGS}; "
        "supported: ${CUDA_SUPPORTED_ARCHS}. "
        "Set TORCH_CUDA_ARCH_LIST for your GPU (e.g. 12.0).")
  endif()
else()
  override_gpu_arches(VLLM_GPU_ARCHES
      ${VLLM_GPU_LANG}
      "${${VLLM_GPU_LANG}_SUPPORTED_ARCHS}")
endif()
if(VLLM_GPU_LANG STREQUAL "CUDA")
  set(CMAKE_CXX_FLAGS "${CMAKE_CXX_FLAGS} -I${CUDA_TOOLKIT_ROOT_DIR}/include")
  if(CUDA_VERSION VERSION_GREATER_EQUAL 13.0)
    set(CMAKE_CXX_FLAGS "${CMAKE_CXX_FLAGS} -I${CUDA_TOOLKIT_ROOT_DIR}/include/cccl")
  endif()
endif()
file(MAKE_DIRECTORY ${FETCHCONTENT_BASE_DIR})
if(VLLM_GPU_LANG STREQUAL "HIP")
  set(CMAKE_${VLLM_GPU_LANG}_FLAGS_DEBUG "${CMAKE_${VLLM_GPU_LANG}_FLAGS_DEBUG} -O0 -ggdb3")
  set(CMAKE_CXX_FLAGS_DEBUG "${CMAKE_CXX_FLAGS_DEBUG} -O0 -ggdb3")
  set(CMAKE_${VLLM_GPU_LANG}_FLAGS "${CMAKE_${VLLM_GPU_LANG}_FLAGS} -Wno-unused-result -Wno-unused-value")
  set(CMAKE_CXX_FLAGS "${CMAKE_CXX_FLAGS} -Wno-unused-result -Wno-unused-value")
  if(CMAKE_CXX_FLAGS MATCHES "\-flto")
    if(NOT CMAKE_CXX_COMPILER_ID STREQUAL CMAKE_HIP_COMPILER_ID)
      message(FATAL_ERROR "LTO is enabled for ROCm build, but the C++ compiler (${CMAKE_CXX_COMPILER_ID}) and HIP compiler (${CMAKE_HIP_COMPILER_ID}) are different which is not supported. "
          "Please ensure they are same by setting CXX=${CMAKE_HIP_COMPILER} environment variable. Or alternatively disable LTO.")
    endif()
  endif()
endif()
set(VLLM_CUMEM_EXT_SRC
    "csrc/cumem_allocator.cpp")
set_gencode_flags_for_srcs(SRCS "${VLLM_CUMEM_EXT_SRC}"
    CUDA_ARCHS "${CUDA_ARCHS}")
if(VLLM_GPU_LANG STREQUAL "CUDA" OR VLLM_GPU_LANG STREQUAL "HIP")
  if(Torch_VERSION VERSION_GREATER_EQUAL "2.13" AND
      Torch_VERSION VERSION_LESS "2.14")
    list(GET TORCH_INCLUDE_DIRS 0 TORCH_INCLUDE_DIR)
    set(_stable_hdr_rel "torch/csrc/stable/stableivalue_conversions.h")
    file(READ "${TORCH_INCLUDE_DIR}/${_stable_hdr_rel}"
        TORCH_STABLE_STRING_CONTENTS)
    if(TORCH_STABLE_STRING_CONTENTS MATCHES "auto strptr = new std::string")
      set(TORCH_SHADOW_INCLUDE_DIR
          "${CMAKE_CURRENT_BINARY_DIR}/torch_patched_headers")
      file(MAKE_DIRECTORY "${TORCH_SHADOW_INCLUDE_DIR}/torch/csrc/stable")
      file(COPY_FILE
          "${TORCH_INCLUDE_DIR}/${_stable_hdr_rel}"
          "${TORCH_SHADOW_INCLUDE_DIR}/${_stable_hdr_rel}")
      execute_process(COMMAND patch --batch --forward -p1
          "--input=${CMAKE_CURRENT_LIST_DIR}/cmake/patches/pytorch_stable_string.patch"
          WORKING_DIRECTORY "${TORCH_SHADOW_INCLUDE_DIR}"
          COMMAND_ERROR_IS_FATAL ANY)
      execute_process(COMMAND ${Python_EXECUTABLE} -c
          "import json,sys; from pathlib import Path; Path(sys.argv[1]).write_text(json.dumps({sys.argv[2]: sys.argv[3:]}))"
          "${CMAKE_CURRENT_BINARY_DIR}/generated-source-deps.json"
          "${TORCH_SHADOW_INCLUDE_DIR}/${_stable_hdr_rel}"
          "${TORCH_INCLUDE_DIR}/${_stable_hdr_rel}"
          "${CMAKE_CURRENT_LIST_DIR}/cmake/patches/pytorch_stable_string.patch"
          COMMAND_ERROR_IS_FATAL ANY)
    endif()
  endif()
  set(VLLM_STABLE_EXT_SRC
      "csrc/torch_bindings.cpp"
      "csrc/cuda_view.cu"
      "csrc/cuda_utils_kernels.cu"
      "csrc/activation_kernels.cu"
      "csrc/muse_spark_mul_tanh_soft_cap_kernel.cu"
      "csrc/ngram_embedding_kernels.cu"
      "csrc/vocab_parallel_embedding_kernels.cu"
      "csrc/quantization/activation_kernels.cu"
      "csrc/quantization/w8a8/int8/scaled_quant.cu"
      "csrc/quantization/w8a8/fp8/common.cu"
      "csrc/quantization/w8a8/fp8/per_token_group_quant.cu"
      "csrc/quantization/gptq/q_gemm.cu"
      "csrc/pos_encoding_kernels.cu"
      "csrc/fused_muse_spark_qknorm_rope_kv_insert_kernel.cu"
      "csrc/fused_qknorm_rope_kernel.cu"
      "csrc/fused_minimax_m3_qknorm_rope_kv_insert_kernel.cu"
      "csrc/layernorm_kernels.cu"
      "csrc/layernorm_quant_kernels.cu"
      "csrc/quantization/fused_kernels/fused_layernorm_dynamic_per_token_quant.cu"
      "csrc/quantization/fused_kernels/fused_silu_mul_block_quant.cu"
      "csrc/attention/merge_attn_states.cu"
      "csrc/sampler.cu"
      "csrc/topk.cu"
      "csrc/mamba/selective_scan_fwd.cu"
      "csrc/cache_kernels.cu"
      "csrc/cache_kernels_fused.cu"
      "csrc/custom_all_gather_reduce_scatter.cu"
      "csrc/custom_all_gather_reduce_scatter_ops.cpp"
      "csrc/custom_all_reduce.cu"
      "csrc/fused_deepseek_v4_qnorm_rope_kv_insert_kernel.cu"
      "csrc/fused_kimi_k3_mla_key_concat_kv_cache_kernel.cu")
  if(VLLM_GPU_LANG STREQUAL "CUDA")
    list(APPEND VLLM_STABLE_EXT_SRC
        "csrc/fused_qknorm_rope_cache_kernel.cu")
  endif()
  if(VLLM_GPU_LANG STREQUAL "CUDA" AND
      DEFINED CMAKE_CUDA_COMPILER_VERSION AND
      CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.0)
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.0)
      cuda_archs_loose_intersection(COOPERATIVE_TOPK_ARCHS
          "9.0a;10.0f;10.1f;10.3f;10.7f;11.0f;12.0f;12.1f" "${CUDA_ARCHS}")
    else()
      cuda_archs_loose_intersection(COOPERATIVE_TOPK_ARCHS
          "9.0a;10.0a;10.1a;10.3a;12.0a;12.1a" "${CUDA_ARCHS}")
    endif()
  endif()
  if(VLLM_GPU_LANG STREQUAL "CUDA")
    list(APPEND VLLM_STABLE_EXT_SRC
        "csrc/hisparse_kernels.cu"
        "csrc/attention/dcp_utils/dcp_direct_a2a_lse_reduce.cu"
        "csrc/attention/dcp_utils/dcp_direct_kv_gather.cu"
        "csrc/attention/dcp_utils/dcp_direct_q_gather.cu")
    if(DEFINED ENV{VLLM_CUTLASS_SRC_DIR})
      set(VLLM_CUTLASS_SRC_DIR $ENV{VLLM_CUTLASS_SRC_DIR})
    endif()
    if(VLLM_CUTLASS_SRC_DIR)
      if(NOT IS_ABSOLUTE VLLM_CUTLASS_SRC_DIR)
        get_filename_component(VLLM_CUTLASS_SRC_DIR "${VLLM_CUTLASS_SRC_DIR}" ABSOLUTE)
      endif()
    else()
    endif()
    fetchcontent_makeavailable(cutlass)
    list(APPEND VLLM_STABLE_EXT_SRC
        "csrc/quantization/w8a8/cutlass/scaled_mm_entry.cu"
        "csrc/quantization/fp4/nvfp4_quant_entry.cu"
        "csrc/quantization/fp4/nvfp4_scaled_mm_entry.cu"
        "csrc/quantization/awq/gemm_kernels.cu"
        "csrc/minimax_reduce_rms_kernel.cu")
    cuda_archs_loose_intersection(MACHETE_ARCHS "9.0a" "${CUDA_ARCHS}")
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 12.0 AND MACHETE_ARCHS)
      set(MACHETE_GEN_SCRIPT
          ${CMAKE_CURRENT_SOURCE_DIR}/csrc/quantization/machete/generate.py)
      file(MD5 ${MACHETE_GEN_SCRIPT} MACHETE_GEN_SCRIPT_HASH)
      if(NOT DEFINED CACHE{MACHETE_GEN_SCRIPT_HASH}
          OR NOT $CACHE{MACHETE_GEN_SCRIPT_HASH} STREQUAL ${MACHETE_GEN_SCRIPT_HASH})
        execute_process(COMMAND ${CMAKE_COMMAND} -E env
            PYTHONPATH=${CMAKE_CURRENT_SOURCE_DIR}/csrc/cutlass_extensions/:${CUTLASS_DIR}/python/:${VLLM_PYTHON_PATH}:$ENV{PYTHONPATH}
            ${Python_EXECUTABLE} ${MACHETE_GEN_SCRIPT}
            RESULT_VARIABLE machete_generation_result
            OUTPUT_VARIABLE machete_generation_output
            OUTPUT_FILE ${CMAKE_CURRENT_BINARY_DIR}/machete_generation.log
            ERROR_FILE ${CMAKE_CURRENT_BINARY_DIR}/machete_generation.log)
        if(NOT machete_generation_result EQUAL 0)
          message(FATAL_ERROR "Machete generation failed."
              " Result: \"${machete_generation_result}\""
              "\nCheck the log for details: "
              "${CMAKE_CURRENT_BINARY_DIR}/machete_generation.log")
        else()
          set(MACHETE_GEN_SCRIPT_HASH ${MACHETE_GEN_SCRIPT_HASH}
              CACHE STRING "Last run machete generate script hash" FORCE)
        endif()
      else()
      endif()
      file(GLOB MACHETE_GEN_SOURCES "csrc/quantization/machete/generated/*.cu")
      list(APPEND VLLM_STABLE_EXT_SRC ${MACHETE_GEN_SOURCES})
      set_gencode_flags_for_srcs(SRCS "${MACHETE_GEN_SOURCES}"
          CUDA_ARCHS "${MACHETE_ARCHS}")
      list(APPEND VLLM_STABLE_EXT_SRC
          csrc/quantization/machete/machete_pytorch.cu)
    else()
    endif()
    set(MINIMAX_M3_FUSED_SRC
        "csrc/fused_minimax_m3_qknorm_rope_kv_insert_kernel.cu")
    list(REMOVE_ITEM VLLM_STABLE_EXT_SRC "${MINIMAX_M3_FUSED_SRC}")
    set_gencode_flags_for_srcs(SRCS "${VLLM_STABLE_EXT_SRC}"
        CUDA_ARCHS "${CUDA_ARCHS}")
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.0)
      cuda_archs_loose_intersection(MINIMAX_M3_FUSED_ARCHS
          "10.0f;10.7f;11.0f" "${CUDA_ARCHS}")
    else()
      cuda_archs_loose_intersection(MINIMAX_M3_FUSED_ARCHS
          "10.0a;10.1a;10.3a" "${CUDA_ARCHS}")
    endif()
    foreach(_ARCH ${CUDA_ARCHS})
      if(_ARCH VERSION_LESS 10.0 OR _ARCH VERSION_GREATER_EQUAL 12.0)
        list(APPEND MINIMAX_M3_FUSED_ARCHS "${_ARCH}")
      endif()
    endforeach()
    set_gencode_flags_for_srcs(SRCS "${MINIMAX_M3_FUSED_SRC}"
        CUDA_ARCHS "${MINIMAX_M3_FUSED_ARCHS}")
    list(APPEND VLLM_STABLE_EXT_SRC "${MINIMAX_M3_FUSED_SRC}")
    if(COOPERATIVE_TOPK_ARCHS)
      list(APPEND VLLM_STABLE_EXT_SRC
          "csrc/cooperative_topk.cu")
      set_gencode_flags_for_srcs(SRCS "csrc/cooperative_topk.cu"
          CUDA_ARCHS "${COOPERATIVE_TOPK_ARCHS}")
    endif()
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.0)
      cuda_archs_loose_intersection(MARLIN_ARCHS "8.0+PTX;12.0f" "${CUDA_ARCHS}")
    else()
      cuda_archs_loose_intersection(MARLIN_ARCHS "8.0+PTX;12.0a;12.1a" "${CUDA_ARCHS}")
    endif()
    cuda_archs_loose_intersection(MARLIN_SM75_ARCHS "7.5" "${CUDA_ARCHS}")
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.0)
      cuda_archs_loose_intersection(MARLIN_BF16_ARCHS "8.0+PTX;9.0+PTX;12.0f" "${CUDA_ARCHS}")
    else()
      cuda_archs_loose_intersection(MARLIN_BF16_ARCHS "8.0+PTX;9.0+PTX;12.0a;12.1a" "${CUDA_ARCHS}")
    endif()
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.0)
      cuda_archs_loose_intersection(MARLIN_FP8_ARCHS "8.9;12.0f" "${CUDA_ARCHS}")
    else()
      cuda_archs_loose_intersection(MARLIN_FP8_ARCHS "8.9;12.0a;12.1a" "${CUDA_ARCHS}")
    endif()
    cuda_archs_loose_intersection(MARLIN_OTHER_ARCHS "7.5;8.0+PTX" "${CUDA_ARCHS}")
    if(MARLIN_OTHER_ARCHS)
      set(MARLIN_GEN_SCRIPT
          ${CMAKE_CURRENT_SOURCE_DIR}/csrc/quantization/marlin/generate_kernels.py)
      file(MD5 ${MARLIN_GEN_SCRIPT} MARLIN_GEN_SCRIPT_HASH)
      list(JOIN CUDA_ARCHS "," CUDA_ARCHS_STR)
      set(MARLIN_GEN_SCRIPT_HASH_AND_ARCH "${MARLIN_GEN_SCRIPT_HASH}(ARCH:${CUDA_ARCHS_STR})")
      if(NOT DEFINED CACHE{MARLIN_GEN_SCRIPT_HASH_AND_ARCH}
          OR NOT $CACHE{MARLIN_GEN_SCRIPT_HASH_AND_ARCH} STREQUAL ${MARLIN_GEN_SCRIPT_HASH_AND_ARCH})
        execute_process(COMMAND ${CMAKE_COMMAND} -E env
            PYTHONPATH=$ENV{PYTHONPATH}
            ${Python_EXECUTABLE} ${MARLIN_GEN_SCRIPT} ${CUDA_ARCHS_STR}
            RESULT_VARIABLE marlin_generation_result
            OUTPUT_VARIABLE marlin_generation_result
            OUTPUT_FILE ${CMAKE_CURRENT_BINARY_DIR}/marlin_generation.log
            ERROR_FILE ${CMAKE_CURRENT_BINARY_DIR}/marlin_generation.log)
        if(NOT marlin_generation_result EQUAL 0)
          message(FATAL_ERROR "Marlin generation failed."
              " Result: \"${marlin_generation_result}\""
              "\nCheck the log for details: "
              "${CMAKE_CURRENT_BINARY_DIR}/marlin_generation.log")
        else()
          set(MARLIN_GEN_SCRIPT_HASH_AND_ARCH ${MARLIN_GEN_SCRIPT_HASH_AND_ARCH}
              CACHE STRING "Last run Marlin generate script hash and arch" FORCE)
        endif()
      else()
      endif()
      if(MARLIN_ARCHS)
        file(GLOB MARLIN_TEMPLATE_KERNEL_SRC "csrc/quantization/marlin/sm80_kernel_*_float16.cu")
        set_gencode_flags_for_srcs(SRCS "${MARLIN_TEMPLATE_KERNEL_SRC}"
            CUDA_ARCHS "${MARLIN_ARCHS}")
        list(APPEND VLLM_STABLE_EXT_SRC ${MARLIN_TEMPLATE_KERNEL_SRC})
        file(GLOB MARLIN_TEMPLATE_BF16_KERNEL_SRC "csrc/quantization/marlin/sm80_kernel_*_bfloat16.cu")
        set_gencode_flags_for_srcs(SRCS "${MARLIN_TEMPLATE_BF16_KERNEL_SRC}"
            CUDA_ARCHS "${MARLIN_BF16_ARCHS}")
        list(APPEND VLLM_STABLE_EXT_SRC ${MARLIN_TEMPLATE_BF16_KERNEL_SRC})
      endif()
      if(MARLIN_SM75_ARCHS)
        file(GLOB MARLIN_TEMPLATE_SM75_KERNEL_SRC "csrc/quantization/marlin/sm75_kernel_*.cu")
        set_gencode_flags_for_srcs(SRCS "${MARLIN_TEMPLATE_SM75_KERNEL_SRC}"
            CUDA_ARCHS "${MARLIN_SM75_ARCHS}")
        list(APPEND VLLM_STABLE_EXT_SRC ${MARLIN_TEMPLATE_SM75_KERNEL_SRC})
      endif()
      if(MARLIN_FP8_ARCHS)
        file(GLOB MARLIN_TEMPLATE_FP8_KERNEL_SRC "csrc/quantization/marlin/sm89_kernel_*.cu")
        set_gencode_flags_for_srcs(SRCS "${MARLIN_TEMPLATE_FP8_KERNEL_SRC}"
            CUDA_ARCHS "${MARLIN_FP8_ARCHS}")
        list(APPEND VLLM_STABLE_EXT_SRC ${MARLIN_TEMPLATE_FP8_KERNEL_SRC})
      endif()
      set(MARLIN_SRCS
          "csrc/quantization/marlin/marlin.cu"
          "csrc/quantization/marlin/marlin_int4_fp8_preprocess.cu"
          "csrc/quantization/marlin/gptq_marlin_repack.cu"
          "csrc/quantization/marlin/awq_marlin_repack.cu")
      set_gencode_flags_for_srcs(SRCS "${MARLIN_SRCS}"
          CUDA_ARCHS "${MARLIN_OTHER_ARCHS}")
      list(APPEND VLLM_STABLE_EXT_SRC "${MARLIN_SRCS}")
    else()
    endif()
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.0)
      cuda_archs_loose_intersection(DSV3_FUSED_A_GEMM_ARCHS "9.0a;10.0f;10.7f;11.0f;12.0f" "${CUDA_ARCHS}")
    else()
      cuda_archs_loose_intersection(DSV3_FUSED_A_GEMM_ARCHS "9.0a;10.0a;10.1a;10.3a;12.0a;12.1a" "${CUDA_ARCHS}")
    endif()
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 12.0 AND DSV3_FUSED_A_GEMM_ARCHS)
      set(DSV3_FUSED_A_GEMM_SRCS "csrc/dsv3_fused_a_gemm.cu")
      set_gencode_flags_for_srcs(SRCS "${DSV3_FUSED_A_GEMM_SRCS}"
          CUDA_ARCHS "${DSV3_FUSED_A_GEMM_ARCHS}")
      list(APPEND VLLM_STABLE_EXT_SRC "${DSV3_FUSED_A_GEMM_SRCS}")
    else()
    endif()
    cuda_archs_sm90plus(FP32_ROUTER_GEMM_ARCHS "${CUDA_ARCHS}")
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 12.0 AND FP32_ROUTER_GEMM_ARCHS)
      set(FP32_ROUTER_GEMM_SRCS
          "csrc/fp32_router_gemm_entry.cu"
          "csrc/fp32_router_gemm.cu")
      set_gencode_flags_for_srcs(SRCS "${FP32_ROUTER_GEMM_SRCS}"
          CUDA_ARCHS "${FP32_ROUTER_GEMM_ARCHS}")
      list(APPEND VLLM_STABLE_EXT_SRC "${FP32_ROUTER_GEMM_SRCS}")
    else()
    endif()
    set(SCALED_MM_3X_ARCHS)
    cuda_archs_loose_intersection(SCALED_MM_ARCHS "9.0a;" "${CUDA_ARCHS}")
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 12.0 AND SCALED_MM_ARCHS)
      set(SCALED_MM_SM90_SRCS
          "csrc/quantization/w8a8/cutlass/scaled_mm_c3x_sm90.cu"
          "csrc/quantization/w8a8/cutlass/c3x/scaled_mm_sm90_fp8.cu"
          "csrc/quantization/w8a8/cutlass/c3x/scaled_mm_sm90_int8.cu"
          "csrc/quantization/w8a8/cutlass/c3x/scaled_mm_azp_sm90_int8.cu"
          "csrc/quantization/w8a8/cutlass/c3x/scaled_mm_blockwise_sm90_fp8.cu")
      set_gencode_flags_for_srcs(SRCS "${SCALED_MM_SM90_SRCS}"
          CUDA_ARCHS "${SCALED_MM_ARCHS}")
      list(APPEND VLLM_STABLE_EXT_SRC "${SCALED_MM_SM90_SRCS}")
      list(APPEND SCALED_MM_3X_ARCHS "${SCALED_MM_ARCHS}")
    else()
    endif()
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.0)
      cuda_archs_loose_intersection(SCALED_MM_ARCHS "12.0f" "${CUDA_ARCHS}")
    else()
      cuda_archs_loose_intersection(SCALED_MM_ARCHS "12.0a;12.1a" "${CUDA_ARCHS}")
    endif()
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 12.8 AND SCALED_MM_ARCHS)
      set(SCALED_MM_SM120_SRCS
          "csrc/quantization/w8a8/cutlass/scaled_mm_c3x_sm120.cu"
          "csrc/quantization/w8a8/cutlass/c3x/scaled_mm_sm120_fp8.cu"
          "csrc/quantization/w8a8/cutlass/c3x/scaled_mm_blockwise_sm120_fp8.cu")
      set_gencode_flags_for_srcs(SRCS "${SCALED_MM_SM120_SRCS}"
          CUDA_ARCHS "${SCALED_MM_ARCHS}")
      list(APPEND VLLM_STABLE_EXT_SRC "${SCALED_MM_SM120_SRCS}")
      list(APPEND SCALED_MM_3X_ARCHS "${SCALED_MM_ARCHS}")
    else()
    endif()
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.0)
      cuda_archs_loose_intersection(SCALED_MM_ARCHS "10.0f;10.7f;11.0f" "${CUDA_ARCHS}")
    else()
      cuda_archs_loose_intersection(SCALED_MM_ARCHS "10.0a;10.1a;10.3a" "${CUDA_ARCHS}")
    endif()
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 12.8 AND SCALED_MM_ARCHS)
      set(SCALED_MM_SM100_SRCS
          "csrc/quantization/w8a8/cutlass/scaled_mm_c3x_sm100.cu"
          "csrc/quantization/w8a8/cutlass/c3x/scaled_mm_sm100_fp8.cu"
          "csrc/quantization/w8a8/cutlass/c3x/scaled_mm_blockwise_sm100_fp8.cu")
      set_gencode_flags_for_srcs(SRCS "${SCALED_MM_SM100_SRCS}"
          CUDA_ARCHS "${SCALED_MM_ARCHS}")
      list(APPEND VLLM_STABLE_EXT_SRC "${SCALED_MM_SM100_SRCS}")
      list(APPEND SCALED_MM_3X_ARCHS "${SCALED_MM_ARCHS}")
    else()
    endif()
    cuda_archs_loose_intersection(SCALED_MM_2X_ARCHS
        "7.5;8.0;8.7;8.9+PTX" "${CUDA_ARCHS}")
    list(REMOVE_ITEM SCALED_MM_2X_ARCHS ${SCALED_MM_3X_ARCHS})
    if(SCALED_MM_2X_ARCHS)
      set(SCALED_MM_C2X_SRCS "csrc/quantization/w8a8/cutlass/scaled_mm_c2x.cu")
      set_gencode_flags_for_srcs(SRCS "${SCALED_MM_C2X_SRCS}"
          CUDA_ARCHS "${SCALED_MM_2X_ARCHS}")
      list(APPEND VLLM_STABLE_EXT_SRC "${SCALED_MM_C2X_SRCS}")
    else()
    endif()
    cuda_archs_loose_intersection(SCALED_MM_ARCHS "9.0a" "${CUDA_ARCHS}")
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 12.3 AND SCALED_MM_ARCHS)
      set(CUTLASS_MOE_SM90_SRCS "csrc/quantization/w8a8/cutlass/moe/grouped_mm_c3x_sm90.cu")
      set_gencode_flags_for_srcs(SRCS "${CUTLASS_MOE_SM90_SRCS}"
          CUDA_ARCHS "${SCALED_MM_ARCHS}")
      list(APPEND VLLM_STABLE_EXT_SRC "${CUTLASS_MOE_SM90_SRCS}")
    else()
    endif()
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.0)
      cuda_archs_loose_intersection(SCALED_MM_ARCHS "10.0f;10.7f;11.0f" "${CUDA_ARCHS}")
    else()
      cuda_archs_loose_intersection(SCALED_MM_ARCHS "10.0a;10.1a;10.3a" "${CUDA_ARCHS}")
    endif()
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 12.8 AND SCALED_MM_ARCHS)
      set(CUTLASS_MOE_SM100_SRCS "csrc/quantization/w8a8/cutlass/moe/grouped_mm_c3x_sm100.cu")
      set_gencode_flags_for_srcs(SRCS "${CUTLASS_MOE_SM100_SRCS}"
          CUDA_ARCHS "${SCALED_MM_ARCHS}")
      list(APPEND VLLM_STABLE_EXT_SRC "${CUTLASS_MOE_SM100_SRCS}")
    else()
    endif()
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.0)
      cuda_archs_loose_intersection(CUTLASS_MOE_DATA_ARCHS "9.0a;10.0f;10.7f;11.0f;12.0f" "${CUDA_ARCHS}")
    else()
      cuda_archs_loose_intersection(CUTLASS_MOE_DATA_ARCHS "9.0a;10.0a;10.1a;10.3a;12.0a;12.1a" "${CUDA_ARCHS}")
    endif()
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 12.3 AND CUTLASS_MOE_DATA_ARCHS)
      set(CUTLASS_MOE_DATA_SRCS "csrc/quantization/w8a8/cutlass/moe/moe_data.cu")
      set_gencode_flags_for_srcs(SRCS "${CUTLASS_MOE_DATA_SRCS}"
          CUDA_ARCHS "${CUTLASS_MOE_DATA_ARCHS}")
      list(APPEND VLLM_STABLE_EXT_SRC "${CUTLASS_MOE_DATA_SRCS}")
    else()
    endif()
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.0)
      cuda_archs_loose_intersection(FP4_SM120_ARCHS "12.0f" "${CUDA_ARCHS}")
    else()
      cuda_archs_loose_intersection(FP4_SM120_ARCHS "12.0a;12.1a" "${CUDA_ARCHS}")
    endif()
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 12.8 AND FP4_SM120_ARCHS)
      set(FP4_SM120_SRCS
          "csrc/quantization/fp4/nvfp4_quant_kernels.cu"
          "csrc/quantization/fp4/activation_nvfp4_quant_fusion_kernels.cu"
          "csrc/quantization/fp4/nvfp4_experts_quant.cu"
          "csrc/quantization/fp4/nvfp4_scaled_mm_sm120_kernels.cu"
          "csrc/quantization/fp4/nvfp4_blockwise_moe_kernel.cu"
          "csrc/nvfp4_kv_cache_kernels.cu")
      set_gencode_flags_for_srcs(SRCS "${FP4_SM120_SRCS}"
          CUDA_ARCHS "${FP4_SM120_ARCHS}")
      list(APPEND VLLM_STABLE_EXT_SRC "${FP4_SM120_SRCS}")
    else()
    endif()
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.0)
      cuda_archs_loose_intersection(FP4_SM100_ARCHS "10.0f;10.7f;11.0f" "${CUDA_ARCHS}")
    else()
      cuda_archs_loose_intersection(FP4_SM100_ARCHS "10.0a;10.1a;10.3a" "${CUDA_ARCHS}")
    endif()
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 12.8 AND FP4_SM100_ARCHS)
      set(FP4_SM100_SRCS
          "csrc/quantization/fp4/nvfp4_quant_kernels.cu"
          "csrc/quantization/fp4/activation_nvfp4_quant_fusion_kernels.cu"
          "csrc/quantization/fp4/nvfp4_experts_quant.cu"
          "csrc/quantization/fp4/nvfp4_scaled_mm_kernels.cu"
          "csrc/quantization/fp4/nvfp4_blockwise_moe_kernel.cu"
          "csrc/quantization/fp4/mxfp4_experts_quant.cu"
          "csrc/quantization/fp4/mxfp4_blockwise_moe_kernel.cu"
          "csrc/nvfp4_kv_cache_kernels.cu"
          "csrc/nvfp4_ds_mla_cache_kernels.cu")
      set_gencode_flags_for_srcs(SRCS "${FP4_SM100_SRCS}"
          CUDA_ARCHS "${FP4_SM100_ARCHS}")
      list(APPEND VLLM_STABLE_EXT_SRC "${FP4_SM100_SRCS}")
    else()
    endif()
    cuda_archs_loose_intersection(W4A8_ARCHS "9.0a" "${CUDA_ARCHS}")
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 12.0 AND W4A8_ARCHS)
      set(W4A8_SRCS
          "csrc/quantization/cutlass_w4a8/w4a8_mm_entry.cu"
          "csrc/quantization/cutlass_w4a8/w4a8_grouped_mm_entry.cu"
          "csrc/quantization/cutlass_w4a8/w4a8_utils.cu")
      set_gencode_flags_for_srcs(SRCS "${W4A8_SRCS}"
          CUDA_ARCHS "${W4A8_ARCHS}")
      list(APPEND VLLM_STABLE_EXT_SRC "${W4A8_SRCS}")
    else()
    endif()
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.0)
      cuda_archs_loose_intersection(MLA_ARCHS "10.0f;10.7f;11.0f" "${CUDA_ARCHS}")
    else()
      cuda_archs_loose_intersection(MLA_ARCHS "10.0a;10.1a;10.3a" "${CUDA_ARCHS}")
    endif()
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 12.8 AND MLA_ARCHS)
      set(CUTLASS_MLA_SRCS
          "csrc/attention/mla/sm100_cutlass_mla_kernel.cu")
      set_gencode_flags_for_srcs(SRCS "${CUTLASS_MLA_SRCS}"
          CUDA_ARCHS "${MLA_ARCHS}")
      list(APPEND VLLM_STABLE_EXT_SRC "${CUTLASS_MLA_SRCS}")
    else()
      set(MLA_ARCHS)
    endif()
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.0)
      cuda_archs_loose_intersection(FUSED_KDA_DECODE_ARCHS
          "9.0a;10.0f;12.0f" "${CUDA_ARCHS}")
      cuda_archs_loose_intersection(FUSED_GDN_DECODE_ARCHS
          "8.0;8.6;8.9;9.0a;10.0f;11.0f;12.0f" "${CUDA_ARCHS}")
    else()
      cuda_archs_loose_intersection(FUSED_GDN_DECODE_ARCHS
          "8.0;8.6;8.9;9.0a" "${CUDA_ARCHS}")
    endif()
    if(FUSED_KDA_DECODE_ARCHS)
      set(FUSED_KDA_DECODE_SRC
          "csrc/kimi_k3/fused_kda_decode_kernel.cu")
      set_gencode_flags_for_srcs(SRCS "${FUSED_KDA_DECODE_SRC}"
          CUDA_ARCHS "${FUSED_KDA_DECODE_ARCHS}")
      set_property(SOURCE ${FUSED_KDA_DECODE_SRC} APPEND PROPERTY
          COMPILE_OPTIONS "$<$<COMPILE_LANGUAGE:CUDA>:--use_fast_math>")
      list(APPEND VLLM_STABLE_EXT_SRC "${FUSED_KDA_DECODE_SRC}")
    endif()
    if(FUSED_GDN_DECODE_ARCHS)
      set(FUSED_GDN_DECODE_SRC
          "csrc/gdn/fused_gdn_decode_kernel.cu")
      set_gencode_flags_for_srcs(SRCS "${FUSED_GDN_DECODE_SRC}"
          CUDA_ARCHS "${FUSED_GDN_DECODE_ARCHS}")
      set_property(SOURCE ${FUSED_GDN_DECODE_SRC} APPEND PROPERTY
          COMPILE_OPTIONS "$<$<COMPILE_LANGUAGE:CUDA>:--use_fast_math>")
      list(APPEND VLLM_STABLE_EXT_SRC "${FUSED_GDN_DECODE_SRC}")
    endif()
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.0)
      cuda_archs_loose_intersection(BEAM_KERNEL_ARCHS
          "9.0a;10.0f;10.3f" "${CUDA_ARCHS}")
    else()
      cuda_archs_loose_intersection(BEAM_KERNEL_ARCHS
          "9.0a;10.0a;10.3a" "${CUDA_ARCHS}")
    endif()
    if(BEAM_KERNEL_ARCHS)
      set(BEAM_KERNEL_SRCS "csrc/beam/allreduce_norm.cu")
      set_gencode_flags_for_srcs(SRCS "${BEAM_KERNEL_SRCS}"
          CUDA_ARCHS "${BEAM_KERNEL_ARCHS}")
      set_property(SOURCE ${BEAM_KERNEL_SRCS} APPEND PROPERTY
          COMPILE_OPTIONS "$<$<COMPILE_LANGUAGE:CUDA>:--fmad=false>")
      list(APPEND VLLM_STABLE_EXT_SRC "${BEAM_KERNEL_SRCS}")
    endif()
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.0)
      cuda_archs_loose_intersection(KIMI_K3_ATTN_RES_ARCHS
          "10.0f" "${CUDA_ARCHS}")
    endif()
    if(KIMI_K3_ATTN_RES_ARCHS)
      set(KIMI_K3_ATTN_RES_SRC
          "csrc/kimi_k3/attn_res_kernel.cu")
      set_gencode_flags_for_srcs(SRCS "${KIMI_K3_ATTN_RES_SRC}"
          CUDA_ARCHS "${KIMI_K3_ATTN_RES_ARCHS}")
      set_property(SOURCE ${KIMI_K3_ATTN_RES_SRC} APPEND PROPERTY
          COMPILE_OPTIONS
          "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;--expt-extended-lambda;--use_fast_math>")
      list(APPEND VLLM_STABLE_EXT_SRC "${KIMI_K3_ATTN_RES_SRC}")
    endif()
    cuda_archs_loose_intersection(HADACORE_ARCHS "8.0+PTX;9.0+PTX" "${CUDA_ARCHS}")
    if(HADACORE_ARCHS)
      set(HADACORE_SRCS "csrc/quantization/hadamard/hadacore/hadamard_transform_cuda.cu")
      set_gencode_flags_for_srcs(SRCS "${HADACORE_SRCS}"
          CUDA_ARCHS "${HADACORE_ARCHS}")
      list(APPEND VLLM_STABLE_EXT_SRC "${HADACORE_SRCS}")
    endif()
  endif()
  if(VLLM_GPU_LANG STREQUAL "HIP")
    set(FUSED_KDA_DECODE_HIP_ARCHS ${VLLM_GPU_ARCHES})
    list(FILTER FUSED_KDA_DECODE_HIP_ARCHS INCLUDE REGEX "gfx942|gfx950")
    if(FUSED_KDA_DECODE_HIP_ARCHS)
      set(FUSED_KDA_DECODE_HIP_SRC
          "csrc/kimi_k3/fused_kda_decode_kernel_rocm.cu")
      list(APPEND VLLM_STABLE_EXT_SRC "${FUSED_KDA_DECODE_HIP_SRC}")
    endif()
    set(FUSED_KDA_CHUNK_HIP_ARCHS ${VLLM_GPU_ARCHES})
    list(FILTER FUSED_KDA_CHUNK_HIP_ARCHS INCLUDE REGEX "gfx950")
    if(FUSED_KDA_CHUNK_HIP_ARCHS)
      set(FUSED_KDA_CHUNK_HIP_SRC
          "csrc/kimi_k3/fused_kda_chunk_kernel_rocm.cu")
      list(APPEND VLLM_STABLE_EXT_SRC "${FUSED_KDA_CHUNK_HIP_SRC}")
    endif()
  endif()
  list(REMOVE_DUPLICATES VLLM_STABLE_EXT_SRC)
endif()
set(VLLM_MOE_EXT_SRC
    "csrc/moe/torch_bindings.cpp"
    "csrc/moe/moe_align_sum_kernels.cu"
    "csrc/moe/topk_softmax_kernels.cu"
    "csrc/moe/topk_softplus_sqrt_kernels.cu")
if(VLLM_GPU_LANG STREQUAL "CUDA")
  list(APPEND VLLM_MOE_EXT_SRC
      "csrc/moe/moe_wna16.cu"
      "csrc/moe/grouped_topk_kernels.cu"
      "csrc/moe/fused_globalize_align_block_size.cu")
endif()
if(VLLM_GPU_LANG STREQUAL "CUDA")
  set(MOE_PERMUTE_SRC
      "csrc/moe/permute_unpermute_kernels/moe_permute_unpermute_kernel.cu"
      "csrc/moe/moe_permute_unpermute_op.cu")
  list(APPEND VLLM_MOE_EXT_SRC "${MOE_PERMUTE_SRC}")
endif()
set_gencode_flags_for_srcs(SRCS "${VLLM_MOE_EXT_SRC}"
    CUDA_ARCHS "${CUDA_ARCHS}")
if(VLLM_GPU_LANG STREQUAL "CUDA")
  set(VLLM_MOE_WNA16_SRC
      "csrc/moe/moe_wna16.cu")
  set_gencode_flags_for_srcs(SRCS "${VLLM_MOE_WNA16_SRC}"
      CUDA_ARCHS "${CUDA_ARCHS}")
  list(APPEND VLLM_MOE_EXT_SRC "${VLLM_MOE_WNA16_SRC}")
  if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.0)
    cuda_archs_loose_intersection(MARLIN_MOE_ARCHS "8.0+PTX;12.0f" "${CUDA_ARCHS}")
  else()
    cuda_archs_loose_intersection(MARLIN_MOE_ARCHS "8.0+PTX;12.0a;12.1a" "${CUDA_ARCHS}")
  endif()
  cuda_archs_loose_intersection(MARLIN_MOE_SM75_ARCHS "7.5" "${CUDA_ARCHS}")
  if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.0)
    cuda_archs_loose_intersection(MARLIN_MOE_FP8_ARCHS "8.9;12.0f" "${CUDA_ARCHS}")
  else()
    cuda_archs_loose_intersection(MARLIN_MOE_FP8_ARCHS "8.9;12.0a;12.1a" "${CUDA_ARCHS}")
  endif()
  cuda_archs_loose_intersection(MARLIN_MOE_OTHER_ARCHS "7.5;8.0+PTX" "${CUDA_ARCHS}")
  if(MARLIN_MOE_OTHER_ARCHS)
    set(MOE_MARLIN_GEN_SCRIPT
        ${CMAKE_CURRENT_SOURCE_DIR}/csrc/quantization/marlin/generate_kernels.py)
    file(MD5 ${MOE_MARLIN_GEN_SCRIPT} MOE_MARLIN_GEN_SCRIPT_HASH)
    list(JOIN CUDA_ARCHS "," CUDA_ARCHS_STR)
    set(MOE_MARLIN_GEN_SCRIPT_HASH_AND_ARCH "${MOE_MARLIN_GEN_SCRIPT_HASH}(ARCH:${CUDA_ARCHS_STR})")
    if(NOT DEFINED CACHE{MOE_MARLIN_GEN_SCRIPT_HASH_AND_ARCH}
        OR NOT $CACHE{MOE_MARLIN_GEN_SCRIPT_HASH_AND_ARCH} STREQUAL ${MOE_MARLIN_GEN_SCRIPT_HASH_AND_ARCH})
      execute_process(COMMAND ${CMAKE_COMMAND} -E env
          PYTHONPATH=$ENV{PYTHONPATH}
          ${Python_EXECUTABLE} ${MOE_MARLIN_GEN_SCRIPT} ${CUDA_ARCHS_STR}
          ${CMAKE_CURRENT_SOURCE_DIR}/csrc/moe/marlin_moe_wna16
          RESULT_VARIABLE moe_marlin_generation_result
          OUTPUT_VARIABLE moe_marlin_generation_output
          OUTPUT_FILE ${CMAKE_CURRENT_BINARY_DIR}/moe_marlin_generation.log
          ERROR_FILE ${CMAKE_CURRENT_BINARY_DIR}/moe_marlin_generation.log)
      if(NOT moe_marlin_generation_result EQUAL 0)
        message(FATAL_ERROR "Marlin MOE generation failed."
            " Result: \"${moe_marlin_generation_result}\""
            "\nCheck the log for details: "
            "${CMAKE_CURRENT_BINARY_DIR}/moe_marlin_generation.log")
      else()
        set(MOE_MARLIN_GEN_SCRIPT_HASH_AND_ARCH ${MOE_MARLIN_GEN_SCRIPT_HASH_AND_ARCH}
            CACHE STRING "Last run Marlin MOE generate script hash" FORCE)
      endif()
    else()
    endif()
    if(MARLIN_MOE_ARCHS)
      file(GLOB MARLIN_MOE_SRC "csrc/moe/marlin_moe_wna16/sm80_kernel_*.cu")
      set_gencode_flags_for_srcs(SRCS "${MARLIN_MOE_SRC}"
          CUDA_ARCHS "${MARLIN_MOE_ARCHS}")
      list(APPEND VLLM_MOE_EXT_SRC ${MARLIN_MOE_SRC})
    endif()
    if(MARLIN_MOE_SM75_ARCHS)
      file(GLOB MARLIN_MOE_SM75_SRC "csrc/moe/marlin_moe_wna16/sm75_kernel_*.cu")
      set_gencode_flags_for_srcs(SRCS "${MARLIN_MOE_SM75_SRC}"
          CUDA_ARCHS "${MARLIN_MOE_SM75_ARCHS}")
      list(APPEND VLLM_MOE_EXT_SRC ${MARLIN_MOE_SM75_SRC})
    endif()
    if(MARLIN_MOE_FP8_ARCHS)
      file(GLOB MARLIN_MOE_FP8_SRC "csrc/moe/marlin_moe_wna16/sm89_kernel_*.cu")
      set_gencode_flags_for_srcs(SRCS "${MARLIN_MOE_FP8_SRC}"
          CUDA_ARCHS "${MARLIN_MOE_FP8_ARCHS}")
      list(APPEND VLLM_MOE_EXT_SRC ${MARLIN_MOE_FP8_SRC})
    endif()
    set(MARLIN_MOE_OTHER_SRC "csrc/moe/marlin_moe_wna16/ops.cu")
    set_gencode_flags_for_srcs(SRCS "${MARLIN_MOE_OTHER_SRC}"
        CUDA_ARCHS "${MARLIN_MOE_OTHER_ARCHS}")
    list(APPEND VLLM_MOE_EXT_SRC "${MARLIN_MOE_OTHER_SRC}")
  else()
  endif()
endif()
if(VLLM_GPU_LANG STREQUAL "HIP")
  set(VLLM_ROCM_EXT_SRC
      "csrc/rocm/torch_bindings.cpp"
      "csrc/rocm/skinny_gemms.cu"
      "csrc/rocm/skinny_gemms_int4.cu"
      "csrc/rocm/attention_dispatch.cu"
      "csrc/rocm/attention_paged_attn_h64_f16_auto.cu"
      "csrc/rocm/attention_paged_attn_h128_f16_auto.cu"
      "csrc/rocm/attention_paged_attn_h64_bf16_auto.cu"
      "csrc/rocm/attention_paged_attn_h128_bf16_auto.cu"
      "csrc/rocm/attention_paged_attn_h64_f16_fp8_f16.cu"
      "csrc/rocm/attention_paged_attn_h128_f16_fp8_f16.cu"
      "csrc/rocm/attention_paged_attn_h64_f16_fp8_fp8.cu"
      "csrc/rocm/attention_paged_attn_h128_f16_fp8_fp8.cu"
      "csrc/rocm/attention_paged_attn_h64_bf16_fp8_f16.cu"
      "csrc/rocm/attention_paged_attn_h128_bf16_fp8_f16.cu"
      "csrc/rocm/attention_paged_attn_h64_bf16_fp8_fp8.cu"
      "csrc/rocm/attention_paged_attn_h128_bf16_fp8_fp8.cu")
  file(READ "${CMAKE_SOURCE_DIR}/csrc/rocm/attention_dispatch.cu" _attn_dispatch)
  string(FIND "${_attn_dispatch}" "#define ATTN_HEAD_SWITCH" _attn_arms_pos)
  if(_attn_arms_pos EQUAL -1)
    message(FATAL_ERROR
        "csrc/rocm/attention_dispatch.cu no longer defines ATTN_HEAD_SWITCH; "
        "update the instantiation guard in CMakeLists.txt accordingly.")
  endif()
  string(SUBSTRING "${_attn_dispatch}" ${_attn_arms_pos} -1 _attn_arms)
  foreach(_attn_src ${VLLM_ROCM_EXT_SRC})
    if(_attn_src MATCHES "^csrc/rocm/attention_paged_attn_.*\\.cu$")
      file(READ "${CMAKE_SOURCE_DIR}/${_attn_src}" _attn_tu)
      string(REGEX MATCHALL "ATTN_ENTRY\\([A-Za-z0-9_]+\\)" _attn_entries
          "${_attn_tu}")
      foreach(_attn_entry ${_attn_entries})
        string(REGEX REPLACE "ATTN_ENTRY\\((.*)\\)" "\\1" _attn_name
            "${_attn_entry}")
        if(NOT _attn_arms MATCHES "${_attn_name}[,)]")
          message(FATAL_ERROR
              "${_attn_src} instantiates ${_attn_name}, but "
              "csrc/rocm/attention_dispatch.cu never dispatches it: the file "
              "would be compiled and linked for nothing. Add it to one of the "
              "ATTN_HEAD_SWITCH() calls in paged_attention().")
        endif()
      endforeach()
    endif()
  endforeach()
  list(REMOVE_ITEM VLLM_ROCM_EXT_SRC "csrc/rocm/skinny_gemms.cu")
  list(REMOVE_ITEM VLLM_ROCM_EXT_SRC "csrc/rocm/skinny_gemms_int4.cu")
  set(VLLM_SKINNY_ARCHES ${VLLM_GPU_ARCHES})
  list(FILTER VLLM_SKINNY_ARCHES EXCLUDE REGEX "gfx1250")
  if(VLLM_SKINNY_ARCHES)
    unset(_VLLM_LAST_HIPIFY_TARGET)
  else()
  endif()
  if(VLLM_GPU_ARCHES MATCHES "gfx1100")
    list(APPEND VLLM_ROCM_EXT_SRC
        "csrc/rocm/q_gemm_rdna3.cu"
        "csrc/rocm/q_gemm_rdna3_wmma.cu"
        "csrc/rocm/moe_q_gemm_rdna3.cu"
        "csrc/rocm/mxfp4_w4a8_gemv_rdna3.cu")
  endif()
endif()
if(VLLM_GPU_LANG STREQUAL "CUDA" OR VLLM_GPU_LANG STREQUAL "HIP")
  fetchcontent_makeavailable(triton_kernels)
  if(NOT triton_kernels_SOURCE_DIR)
    message(FATAL_ERROR "[triton_kernels] Cannot resolve triton_kernels_SOURCE_DIR")
  endif()
endif()
if(VLLM_GPU_LANG STREQUAL "CUDA"
    AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU"
    AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS "13")
  message(FATAL_ERROR
      "GCC >= 13 is required to build vLLM with CUDA (found ${CMAKE_CXX_COMPILER_VERSION}). "
      "The DeepGEMM and DeepSelect dependencies use C++20 <format> in host code, "
      "which libstdc++ does not provide before GCC 13. "
      "See: https://github.com/vllm-project/vllm/issues/58158")
endif()
if(VLLM_GPU_LANG STREQUAL "CUDA")
  if(DEFINED ENV{DEEPGEMM_SRC_DIR})
    set(DEEPGEMM_SRC_DIR $ENV{DEEPGEMM_SRC_DIR})
  endif()
  if(DEEPGEMM_SRC_DIR)
    set(_deepgemm_user_src "${DEEPGEMM_SRC_DIR}")
    cmake_path(ABSOLUTE_PATH _deepgemm_user_src
        BASE_DIRECTORY "${CMAKE_SOURCE_DIR}"
        NORMALIZE)
    set(DEEPGEMM_SRC_DIR "${_deepgemm_user_src}")
    if(NOT IS_DIRECTORY "${DEEPGEMM_SRC_DIR}")
      message(FATAL_ERROR
          "DEEPGEMM_SRC_DIR is not an existing directory: '${DEEPGEMM_SRC_DIR}'")
    endif()
    set(deepgemm_SOURCE_DIR "${DEEPGEMM_SRC_DIR}")
  else()
    set(_DEEPGEMM_UPSTREAM_REPO "https://github.com/vllm-project/DeepGEMM.git")
    set(_DEEPGEMM_UPSTREAM_TAG "0820030756945b2daec208e8e8255268360f337d")
    set(_deepgemm_fc_root "${FETCHCONTENT_BASE_DIR}")
    if(NOT _deepgemm_fc_root)
      set(_deepgemm_fc_root "${CMAKE_BINARY_DIR}/_deps")
    endif()
    set(_deepgemm_src "${_deepgemm_fc_root}/deepgemm-src")
    set(_deepgemm_bin "${_deepgemm_fc_root}/deepgemm-build")
    set(_deepgemm_sub "${_deepgemm_fc_root}/deepgemm-subbuild")
    if(EXISTS "${_deepgemm_src}/deep_gemm/_C.py")
      set(deepgemm_SOURCE_DIR "${_deepgemm_src}")
    else()
      fetchcontent_populate(deepgemm
          SUBBUILD_DIR "${_deepgemm_sub}"
          SOURCE_DIR "${_deepgemm_src}"
          BINARY_DIR "${_deepgemm_bin}"
          GIT_REPOSITORY "${_DEEPGEMM_UPSTREAM_REPO}"
          GIT_TAG "${_DEEPGEMM_UPSTREAM_TAG}"
          GIT_SUBMODULES "third-party/cutlass" "third-party/deep_jit"
          GIT_PROGRESS TRUE)
    endif()
  endif()
  set(DEEPGEMM_SUPPORT_ARCHS)
  if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 12.3)
    list(APPEND DEEPGEMM_SUPPORT_ARCHS "9.0a")
  endif()
  if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 12.8)
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 12.9)
      list(APPEND DEEPGEMM_SUPPORT_ARCHS "10.0f")
      if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.4)
        list(APPEND DEEPGEMM_SUPPORT_ARCHS "10.7f")
      endif()
    else()
      list(APPEND DEEPGEMM_SUPPORT_ARCHS "10.0a")
    endif()
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.0)
      list(APPEND DEEPGEMM_SUPPORT_ARCHS "12.0f")
    else()
      list(APPEND DEEPGEMM_SUPPORT_ARCHS "12.0a" "12.1a")
    endif()
  endif()
  cuda_archs_loose_intersection(DEEPGEMM_ARCHS
      "${DEEPGEMM_SUPPORT_ARCHS}" "${CUDA_ARCHS}")
  if(DEEPGEMM_ARCHS)
    file(GLOB_RECURSE _dg_headers
        "${deepgemm_SOURCE_DIR}/csrc/*.h"
        "${deepgemm_SOURCE_DIR}/csrc/*.hpp"
        "${deepgemm_SOURCE_DIR}/deep_gemm/include/*.h"
        "${deepgemm_SOURCE_DIR}/deep_gemm/include/*.hpp"
        "${deepgemm_SOURCE_DIR}/deep_gemm/include/*.cuh"
        "${deepgemm_SOURCE_DIR}/third-party/deep_jit/include/*.h"
        "${deepgemm_SOURCE_DIR}/third-party/deep_jit/include/*.hpp")
    file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/deep_gemm_envs.py"
        "# Pre-installed environment variables\npersistent_envs = dict()\n")
  else()
  endif()
  if(DEFINED ENV{DEEPSELECT_SRC_DIR})
    set(DEEPSELECT_SRC_DIR $ENV{DEEPSELECT_SRC_DIR})
  endif()
  fetchcontent_makeavailable(deepselect)
  set(DEEPSELECT_SUPPORT_ARCHS)
  if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 12.9)
    list(APPEND DEEPSELECT_SUPPORT_ARCHS "10.0f")
  endif()
  cuda_archs_loose_intersection(DEEPSELECT_ARCHS "${DEEPSELECT_SUPPORT_ARCHS}" "${CUDA_ARCHS}")
  if(DEEPSELECT_ARCHS)
    file(GLOB DeepSelect_SOURCES CONFIGURE_DEPENDS
        ${deepselect_SOURCE_DIR}/csrc/cuda_kernels/v3/instantiations/*.cu
        ${deepselect_SOURCE_DIR}/csrc/cuda_kernels/v3_fp32/instantiations/*.cu
        ${deepselect_SOURCE_DIR}/csrc/cuda_kernels/v3_cluster/instantiations/*.cu)
    list(PREPEND DeepSelect_SOURCES ${deepselect_SOURCE_DIR}/csrc/api.cpp)
    set_gencode_flags_for_srcs(SRCS "${DeepSelect_SOURCES}"
        CUDA_ARCHS "${DEEPSELECT_ARCHS}")
  else()
  endif()
  if(DEFINED ENV{FMHA_SM100_SRC_DIR})
    set(FMHA_SM100_SRC_DIR $ENV{FMHA_SM100_SRC_DIR})
  endif()
  if(NOT fmha_sm100_POPULATED)
    fetchcontent_populate(fmha_sm100)
  endif()
  if(DEFINED ENV{FLASH_MLA_SRC_DIR})
    set(FLASH_MLA_SRC_DIR $ENV{FLASH_MLA_SRC_DIR})
  endif()
  fetchcontent_makeavailable(flashmla)
  set(FLASHMLA_VENDOR_DIR "${CMAKE_SOURCE_DIR}/vllm/third_party/flashmla")
  file(MAKE_DIRECTORY "${FLASHMLA_VENDOR_DIR}")
  file(READ "${flashmla_SOURCE_DIR}/flash_mla/flash_mla_interface.py"
      FLASHMLA_INTERFACE_CONTENT)
  string(REPLACE "flash_mla_cuda = torch.ops._flashmla_C"
      "import vllm._flashmla_C\nflash_mla_cuda = torch.ops._flashmla_C"
      FLASHMLA_INTERFACE_CONTENT
      "${FLASHMLA_INTERFACE_CONTENT}")
  file(WRITE "${FLASHMLA_VENDOR_DIR}/flash_mla_interface.py"
      "${FLASHMLA_INTERFACE_CONTENT}")
  set(SUPPORT_ARCHS)
  if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 12.3)
    list(APPEND SUPPORT_ARCHS "9.0a")
  endif()
  if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 12.9)
    list(APPEND SUPPORT_ARCHS "10.0f")
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.4)
      list(APPEND SUPPORT_ARCHS "10.7f")
    endif()
  elseif(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 12.8)
    list(APPEND SUPPORT_ARCHS "10.0a")
  endif()
  cuda_archs_loose_intersection(FLASH_MLA_ARCHS "${SUPPORT_ARCHS}" "${CUDA_ARCHS}")
  if(FLASH_MLA_ARCHS)
    set(FlashMLA_SOURCES
        ${flashmla_SOURCE_DIR}/csrc/api/api.cpp
        ${flashmla_SOURCE_DIR}/csrc/api/sparse_prefill.cpp
        ${flashmla_SOURCE_DIR}/csrc/api/sparse_decode.cpp
        ${flashmla_SOURCE_DIR}/csrc/api/dense_decode.cpp
        ${flashmla_SOURCE_DIR}/csrc/api/fused_norm_rope_attn_rope_cast_fwd.cpp
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/smxx/decode/get_decoding_sched_meta/get_decoding_sched_meta.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/smxx/decode/combine/combine.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/prefill/dense/fmha_cutlass_fwd_sm100.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/prefill/sparse/fwd/head64/instantiations/phase1_h64_k512.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/prefill/sparse/fwd/head128/instantiations/phase1_k512.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/prefill/sparse/fwd_for_small_topk/head128/instantiations/phase1_k512.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/decode/sparse/head64/instantiations/v41_h64.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/decode/sparse/head64/instantiations/v41_h64_no_split.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/decode/sparse/head64/instantiations/v41fp4_h64.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/decode/sparse/head64/instantiations/v41fp4_h64_no_split.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/prefill/sparse/fwd_for_small_topk/head128/instantiations/phase1_decode_k512_v41.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/prefill/sparse/fwd_for_small_topk/head128/instantiations/phase1_decode_k512_v41_splitkv.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/prefill/sparse/fwd_for_small_topk/head128/instantiations/phase1_decode_k512_v41fp4.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/prefill/sparse/fwd_for_small_topk/head128/instantiations/phase1_decode_k512_v41fp4_splitkv.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/prefill/sparse/fused_norm_rope_attn_rope_cast_fwd/core_attn/instantiations/v41_h64_prefill_norm.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/prefill/sparse/fused_norm_rope_attn_rope_cast_fwd/core_attn/instantiations/v41_h64_prefill_nonorm.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/prefill/sparse/fused_norm_rope_attn_rope_cast_fwd/core_attn/instantiations/v41_h64_decode_norm.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/prefill/sparse/fused_norm_rope_attn_rope_cast_fwd/core_attn/instantiations/v41_h64_decode_nonorm.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/prefill/sparse/fused_norm_rope_attn_rope_cast_fwd/core_attn/instantiations/v41fp4_h64_decode_norm.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/prefill/sparse/fused_norm_rope_attn_rope_cast_fwd/core_attn/instantiations/v41fp4_h64_decode_nonorm.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/prefill/sparse/fused_norm_rope_attn_rope_cast_fwd/core_attn/instantiations/v41_h128_prefill_norm.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/prefill/sparse/fused_norm_rope_attn_rope_cast_fwd/core_attn/instantiations/v41_h128_prefill_nonorm.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/prefill/sparse/fused_norm_rope_attn_rope_cast_fwd/core_attn/instantiations/v41_h128_decode_norm.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/prefill/sparse/fused_norm_rope_attn_rope_cast_fwd/core_attn/instantiations/v41_h128_decode_nonorm.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/prefill/sparse/fused_norm_rope_attn_rope_cast_fwd/core_attn/instantiations/v41fp4_h128_decode_norm.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/prefill/sparse/fused_norm_rope_attn_rope_cast_fwd/core_attn/instantiations/v41fp4_h128_decode_nonorm.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/prefill/sparse/fused_norm_rope_attn_rope_cast_fwd/permute_q_b_proj/kernel.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/sm100/prefill/sparse/fused_norm_rope_attn_rope_cast_fwd/permute_wv_proj/kernel.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/smxx/decode/get_decoding_sched_meta/get_decoding_sched_meta.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/smxx/decode/combine/combine.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/sm90/decode/dense/instantiations/fp16.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/sm90/decode/dense/instantiations/bf16.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/sm90/decode/sparse/instantiations/v4_persistent_h64.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/sm90/decode/sparse/instantiations/v4_persistent_h128.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/sm90/decode/sparse/instantiations/v32_persistent_h64.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/sm90/decode/sparse/instantiations/v32_persistent_h128.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/sm90/prefill/sparse/instantiations/phase1_k512.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/sm90/prefill/sparse/instantiations/phase1_k512_topklen.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/sm90/prefill/sparse/instantiations/phase1_k576.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/sm90/prefill/sparse/instantiations/phase1_k576_topklen.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/sm100/prefill/sparse/fwd/head64/instantiations/phase1_h64_k576.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/sm100/prefill/sparse/fwd/head128/instantiations/phase1_k576.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/sm100/decode/sparse/head64/instantiations/v32_h64.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/sm100/decode/sparse/head64/instantiations/v32_h64_no_split.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/sm100/decode/sparse/head64/instantiations/v4_h64.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/sm100/decode/sparse/head64/instantiations/v4_h64_no_split.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/sm100/decode/sparse/nvfp4_head64/instantiations/v32_nvfp4_fp8rope.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/sm100/prefill/sparse/fwd_for_small_topk/head128/instantiations/phase1_decode_k512.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/sm100/prefill/sparse/fwd_for_small_topk/head128/instantiations/phase1_decode_k512_splitkv.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/sm100/prefill/sparse/fused_norm_rope_attn_rope_cast_fwd/core_attn/instantiations/v4_h64_decode_norm.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/sm100/prefill/sparse/fused_norm_rope_attn_rope_cast_fwd/core_attn/instantiations/v4_h64_decode_nonorm.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/sm100/prefill/sparse/fused_norm_rope_attn_rope_cast_fwd/core_attn/instantiations/v4_h128_decode_norm.cu
        ${flashmla_SOURCE_DIR}/csrc/cuda_kernels/legacy/sm100/prefill/sparse/fused_norm_rope_attn_rope_cast_fwd/core_attn/instantiations/v4_h128_decode_nonorm.cu)
    set(FlashMLA_Extension_SOURCES
        ${flashmla_SOURCE_DIR}/csrc/extension/torch_api.cpp
        ${flashmla_SOURCE_DIR}/csrc/extension/sm90/dense_fp8/pybind.cpp
        ${flashmla_SOURCE_DIR}/csrc/extension/sm90/dense_fp8/flash_fwd_mla_fp8_sm90.cu
        ${flashmla_SOURCE_DIR}/csrc/extension/sm90/dense_fp8/flash_fwd_mla_metadata.cu)
    set_gencode_flags_for_srcs(SRCS "${FlashMLA_SOURCES}"
        CUDA_ARCHS "${FLASH_MLA_ARCHS}")
    set_gencode_flags_for_srcs(SRCS "${FlashMLA_Extension_SOURCES}"
        CUDA_ARCHS "${FLASH_MLA_ARCHS}")
  else()
  endif()
  if(DEFINED ENV{FLASH_KDA_SRC_DIR})
    set(FLASH_KDA_SRC_DIR $ENV{FLASH_KDA_SRC_DIR})
  endif()
  fetchcontent_makeavailable(flashkda)
  set(FLASH_KDA_SUPPORT_ARCHS)
  if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 12.0)
    list(APPEND FLASH_KDA_SUPPORT_ARCHS "9.0a")
  endif()
  if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.0)
    list(APPEND FLASH_KDA_SUPPORT_ARCHS "10.0f" "12.0f")
  elseif(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 12.9)
    list(APPEND FLASH_KDA_SUPPORT_ARCHS "10.0a" "10.3a" "12.0a")
  endif()
  cuda_archs_loose_intersection(FLASH_KDA_ARCHS "${FLASH_KDA_SUPPORT_ARCHS}" "${CUDA_ARCHS}")
  if(FLASH_KDA_ARCHS)
    set(FLASH_KDA_SOURCES
        csrc/flashkda_registration.cpp
        ${flashkda_SOURCE_DIR}/csrc/flash_kda.cpp
        ${flashkda_SOURCE_DIR}/csrc/smxx/fwd_launch.cu)
    set_gencode_flags_for_srcs(SRCS "${FLASH_KDA_SOURCES}"
        CUDA_ARCHS "${FLASH_KDA_ARCHS}")
  else()
  endif()
  set(CUTLASS_INCLUDE_DIR "${CUTLASS_INCLUDE_DIR}" CACHE PATH "Path to CUTLASS include/ directory")
  if(DEFINED ENV{QUTLASS_SRC_DIR})
    set(QUTLASS_SRC_DIR $ENV{QUTLASS_SRC_DIR})
  endif()
  if(QUTLASS_SRC_DIR)
    set(_qutlass_user_src "${QUTLASS_SRC_DIR}")
    cmake_path(ABSOLUTE_PATH _qutlass_user_src
        BASE_DIRECTORY "${CMAKE_SOURCE_DIR}"
        NORMALIZE)
    set(QUTLASS_SRC_DIR "${_qutlass_user_src}")
    if(NOT IS_DIRECTORY "${QUTLASS_SRC_DIR}")
      message(FATAL_ERROR
          "[QUTLASS] QUTLASS_SRC_DIR is not an existing directory: '${QUTLASS_SRC_DIR}'")
    endif()
    set(qutlass_SOURCE_DIR "${QUTLASS_SRC_DIR}")
  else()
    set(_QUTLASS_UPSTREAM_REPO "https://github.com/IST-DASLab/qutlass.git")
    set(_QUTLASS_UPSTREAM_TAG "e74319e3405ce6d71965732880f5dc1f52371f64")
    set(_qutlass_fc_root "${FETCHCONTENT_BASE_DIR}")
    if(NOT _qutlass_fc_root)
      set(_qutlass_fc_root "${CMAKE_BINARY_DIR}/_deps")
    endif()
    set(_qutlass_src "${_qutlass_fc_root}/qutlass-src")
    set(_qutlass_bin "${_qutlass_fc_root}/qutlass-build")
    set(_qutlass_sub "${_qutlass_fc_root}/qutlass-subbuild")
    if(EXISTS "${_qutlass_src}/qutlass/csrc/bindings.cpp")
      set(qutlass_SOURCE_DIR "${_qutlass_src}")
    else()
      fetchcontent_populate(qutlass
          SUBBUILD_DIR "${_qutlass_sub}"
          SOURCE_DIR "${_qutlass_src}"
          BINARY_DIR "${_qutlass_bin}"
          GIT_REPOSITORY "${_QUTLASS_UPSTREAM_REPO}"
          GIT_TAG "${_QUTLASS_UPSTREAM_TAG}"
          GIT_PROGRESS TRUE)
    endif()
  endif()
  if(NOT qutlass_SOURCE_DIR)
    message(FATAL_ERROR "[QUTLASS] source directory could not be resolved.")
  endif()
  if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.0)
    cuda_archs_loose_intersection(QUTLASS_SM120_ARCHS "12.0f" "${CUDA_ARCHS}")
    if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.4)
      cuda_archs_loose_intersection(QUTLASS_SM100_ARCHS "10.0f;10.7f" "${CUDA_ARCHS}")
    else()
      cuda_archs_loose_intersection(QUTLASS_SM100_ARCHS "10.0f" "${CUDA_ARCHS}")
    endif()
  else()
    cuda_archs_loose_intersection(QUTLASS_SM120_ARCHS "12.0a;12.1a" "${CUDA_ARCHS}")
    cuda_archs_loose_intersection(QUTLASS_SM100_ARCHS "10.0a;10.3a" "${CUDA_ARCHS}")
  endif()
  if(QUTLASS_SM100_ARCHS)
    set(QUTLASS_ARCHS "${QUTLASS_SM100_ARCHS}")
  elseif(QUTLASS_SM120_ARCHS)
    set(QUTLASS_ARCHS "${QUTLASS_SM120_ARCHS}")
  else()
    set(QUTLASS_ARCHS)
  endif()
  if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 12.8 AND QUTLASS_ARCHS)
    set(QUTLASS_SOURCES
        csrc/qutlass_registration.cpp
        ${qutlass_SOURCE_DIR}/qutlass/csrc/bindings.cpp
        ${qutlass_SOURCE_DIR}/qutlass/csrc/gemm.cu
        ${qutlass_SOURCE_DIR}/qutlass/csrc/gemm_ada.cu
        ${qutlass_SOURCE_DIR}/qutlass/csrc/fused_quantize_mx.cu
        ${qutlass_SOURCE_DIR}/qutlass/csrc/fused_quantize_nv.cu
        ${qutlass_SOURCE_DIR}/qutlass/csrc/fused_quantize_mx_sm100.cu
        ${qutlass_SOURCE_DIR}/qutlass/csrc/fused_quantize_nv_sm100.cu)
    if(CUTLASS_INCLUDE_DIR AND EXISTS "${CUTLASS_INCLUDE_DIR}/cutlass/cutlass.h")
      if(CUTLASS_TOOLS_UTIL_INCLUDE_DIR AND
          EXISTS "${CUTLASS_TOOLS_UTIL_INCLUDE_DIR}/cutlass/util/packed_stride.hpp")
      else()
        get_filename_component(_qutlass_cutlass_root "${CUTLASS_INCLUDE_DIR}" DIRECTORY)
      endif()
    elseif(EXISTS "${qutlass_SOURCE_DIR}/qutlass/third_party/cutlass/include/cutlass/cutlass.h")
    else()
      message(FATAL_ERROR "[QUTLASS] CUTLASS headers not found. "
          "Set -DCUTLASS_INCLUDE_DIR=/path/to/cutlass/include")
    endif()
    set_gencode_flags_for_srcs(SRCS "${QUTLASS_SOURCES}"
        CUDA_ARCHS "${QUTLASS_ARCHS}")
    set_property(SOURCE ${QUTLASS_SOURCES} APPEND PROPERTY COMPILE_OPTIONS
        $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr --use_fast_math -O3>)
  else()
  endif()
  if(DEFINED ENV{TML_FA4_SRC_DIR})
    set(TML_FA4_SRC_DIR $ENV{TML_FA4_SRC_DIR})
  endif()
  if(NOT tml_fa4_POPULATED)
    fetchcontent_populate(tml_fa4)
  endif()
  if(VLLM_GPU_LANG STREQUAL "CUDA")
    foreach(_ARCH ${CUDA_ARCHS})
      string(REPLACE "." "" _ARCH "${_ARCH}")
      list(APPEND VLLM_GPU_ARCHES "${_ARCH}-real")
    endforeach()
  endif()
  if(DEFINED ENV{VLLM_FLASH_ATTN_SRC_DIR})
    set(VLLM_FLASH_ATTN_SRC_DIR $ENV{VLLM_FLASH_ATTN_SRC_DIR})
  endif()
  fetchcontent_makeavailable(vllm-flash-attn)
endif()
