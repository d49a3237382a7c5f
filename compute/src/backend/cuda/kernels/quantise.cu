// Rows of bf16 as e4m3, with one scale each: weights when they are loaded, and the inputs of
// products with them.

#define THREADS 256

__shared__ float parts[THREADS / 32];

// `step` of null: `rows` rows.
extern "C" __global__ void __launch_bounds__(THREADS) quantise(
    const Step* step, const u16* x, u32* out, float* scales, u32 rows, u32 width) {
    wait_for_previous();
    let_next_start();
    const u32 count = step == nullptr ? rows : step->rows;
    for (u32 r = blockIdx.x; r < count; r += gridDim.x) {
        const uint4* from = (const uint4*)(x + (u64)r * width);
        float most = 0.0f;
#pragma unroll 4
        for (u32 i = threadIdx.x; i < width / 8; i += THREADS) {
            float v[8];
            unpack8(from[i], v);
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                most = fmaxf(most, fabsf(v[j]));
            }
        }
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) {
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, offset));
        }
        if (threadIdx.x % 32 == 0) {
            parts[threadIdx.x / 32] = most;
        }
        __syncthreads();
        most = 1e-12f;
#pragma unroll
        for (int warp = 0; warp < THREADS / 32; ++warp) {
            most = fmaxf(most, parts[warp]);
        }
        __syncthreads();
        const float factor = E4M3_MAX / most;
        if (threadIdx.x == 0) {
            scales[r] = most / E4M3_MAX;
        }
        uint2* to = (uint2*)(out + (u64)r * width / 4);
#pragma unroll 4
        for (u32 i = threadIdx.x; i < width / 8; i += THREADS) {
            float v[8];
            unpack8(from[i], v);
            to[i] = to_e4m3x8(v, factor);
        }
    }
}
