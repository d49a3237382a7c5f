// Rows of bf16 as e4m3, with one scale each: weights when they are loaded, and the inputs of
// products with them.

#define THREADS 256
// Pieces of 8 values that a thread keeps: of rows of up to 16384. What is beyond is read twice.
#define KEPT 8

__shared__ u32 parts[THREADS / 32];

// Larger magnitudes of two pairs of bf16, which are ordered as their bits are.
__device__ __forceinline__ u32 larger(u32 a, u32 b) {
    u32 v;
    asm("max.u16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
    return v;
}

__device__ __forceinline__ u32 largest(const uint4& v, u32 most) {
    const u32 magnitude = 0x7fff7fffu;
    return larger(
        larger(larger(v.x & magnitude, v.y & magnitude), larger(v.z & magnitude, v.w & magnitude)), most);
}

// `step` of null: `rows` rows.
extern "C" __global__ void __launch_bounds__(THREADS) quantise(
    const Step* step, const u16* x, u32* out, float* scales, u32 rows, u32 width) {
    let_next_start();
    wait_for_previous();
    const u32 count = step == nullptr ? rows : step->rows, pieces = width / 8;
    for (u32 r = blockIdx.x; r < count; r += gridDim.x) {
        const uint4* from = (const uint4*)(x + (u64)r * width);
        uint4 kept[KEPT];
        u32 pair = 0;
#pragma unroll
        for (u32 p = 0; p < KEPT; ++p) {
            const u32 i = p * THREADS + threadIdx.x;
            kept[p] = i < pieces ? from[i] : zero16();
        }
#pragma unroll
        for (u32 p = 0; p < KEPT; ++p) {
            pair = largest(kept[p], pair);
        }
#pragma unroll 1
        for (u32 i = KEPT * THREADS + threadIdx.x; i < pieces; i += THREADS) {
            pair = largest(from[i], pair);
        }
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) {
            pair = larger(pair, __shfl_xor_sync(0xffffffffu, pair, offset));
        }
        if (threadIdx.x % 32 == 0) {
            parts[threadIdx.x / 32] = pair;
        }
        __syncthreads();
#pragma unroll
        for (int warp = 0; warp < THREADS / 32; ++warp) {
            pair = larger(pair, parts[warp]);
        }
        __syncthreads();
        const float most = fmaxf(fmaxf(low(pair), high(pair)), 1e-12f), factor = E4M3_MAX / most;
        if (threadIdx.x == 0) {
            scales[r] = most / E4M3_MAX;
        }
        uint2* to = (uint2*)(out + (u64)r * width / 4);
        float v[8];
#pragma unroll
        for (u32 p = 0; p < KEPT; ++p) {
            const u32 i = p * THREADS + threadIdx.x;
            if (i < pieces) {
                unpack8(kept[p], v);
                to[i] = to_e4m3x8(v, factor);
            }
        }
#pragma unroll 1
        for (u32 i = KEPT * THREADS + threadIdx.x; i < pieces; i += THREADS) {
            unpack8(from[i], v);
            to[i] = to_e4m3x8(v, factor);
        }
    }
}
