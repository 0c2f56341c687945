// A kernel with the FP4 instructions of SM12x where the target has them, and an empty one where
// it has not or where EMPTY is defined: the symbol is there in any case, as in vLLM's csrc.
#include <cuda_fp4.h>
#include <stdint.h>

__global__ void nvfp4_gemm(const uint32_t* a, const uint32_t* b, const uint32_t* s, float* d) {
#if !defined(EMPTY) && defined(__CUDA_ARCH_FEAT_SM120_ALL) || \
    !defined(EMPTY) && defined(__CUDA_ARCH_FEAT_SM121_ALL) || \
    !defined(EMPTY) && defined(__CUDA_ARCH_FAMILY_SPECIFIC__)
  asm volatile(
      "mma.sync.aligned.kind::mxf4nvf4.block_scale.scale_vec::4X.m16n8k64.row.col.f32.e2m1.e2m1"
      ".f32.ue4m3 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3},{%10},{%11,%12},{%13},{%11,%12};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(s[0]),
        "h"((uint16_t)0), "h"((uint16_t)0), "r"(s[1]));
#endif
}

__global__ void nvfp4_quantise(const float2* x, uint8_t* y) {
#if !defined(EMPTY)
  y[threadIdx.x] = __nv_cvt_float2_to_fp4x2(x[threadIdx.x], __NV_E2M1, cudaRoundNearest);
#endif
}
