// DoRA (Liu et al., 2024, section 4.1): gain[i] = magnitude[i] / norm of row i of W + scale B A.
// Once for each upload.

#if WEIGHT_BITS == 8
typedef unsigned char Weight;
#else
typedef u16 Weight;
#endif

#define ROWS 8
#define MAX_RANK 512

extern "C" __global__ void __launch_bounds__(256) dora_gain(
    const Weight* w, const float* w_scales, const u16* a, const u16* b, const float* magnitude, float* gain, u32 outputs,
    u32 inputs, u32 rank, float scale) {
    __shared__ float own_b[ROWS][MAX_RANK];
    __shared__ float sums[ROWS][8];
    const u32 first = blockIdx.x * ROWS;
    for (u32 i = threadIdx.x; i < ROWS * rank; i += blockDim.x) {
        const u32 row = first + i / rank;
        own_b[i / rank][i % rank] = row < outputs ? scale * to_float(b[(u64)row * rank + i % rank]) : 0.0f;
    }
    __syncthreads();
    float squares[ROWS] = {};
    for (u32 k = threadIdx.x * 2; k < inputs; k += blockDim.x * 2) {
        float left[ROWS], right[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const bool exists = first + r < outputs;
            const Weight* from = w + (u64)(exists ? first + r : first) * inputs + k;
#if WEIGHT_BITS == 8
            const float w_scale = exists ? w_scales[first + r] : 0.0f;
            left[r] = w_scale * e4m3_to_float(from[0]);
            right[r] = w_scale * e4m3_to_float(from[1]);
#else
            left[r] = exists ? to_float(from[0]) : 0.0f;
            right[r] = exists ? to_float(from[1]) : 0.0f;
#endif
        }
        for (u32 j = 0; j < rank; ++j) {
            const u32 pair = *(const u32*)(a + (u64)j * inputs + k);
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                left[r] += own_b[r][j] * low(pair);
                right[r] += own_b[r][j] * high(pair);
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            squares[r] += left[r] * left[r] + right[r] * right[r];
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) {
            squares[r] += __shfl_xor_sync(0xffffffffu, squares[r], offset);
        }
        if (threadIdx.x % 32 == 0) {
            sums[r][threadIdx.x / 32] = squares[r];
        }
    }
    __syncthreads();
    if (threadIdx.x < ROWS && first + threadIdx.x < outputs) {
        float total = 0.0f;
        for (int warp = 0; warp < 8; ++warp) {
            total += sums[threadIdx.x][warp];
        }
        gain[first + threadIdx.x] = magnitude[first + threadIdx.x] / sqrtf(total);
    }
}
