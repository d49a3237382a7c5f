// hidden += y (when y is given), x = hidden / rms(hidden) * weight; with 8-bit weights x8, too.

#define THREADS 256
// Pieces of 8 columns of a thread: rows of up to 8192.
#define PIECES 4

__shared__ float parts[THREADS / 32];

template <bool MAX> __device__ __forceinline__ float over_block(float v) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, v, offset);
        v = MAX ? fmaxf(v, other) : v + other;
    }
    if (threadIdx.x % 32 == 0) {
        parts[threadIdx.x / 32] = v;
    }
    __syncthreads();
    v = parts[0];
#pragma unroll
    for (int warp = 1; warp < THREADS / 32; ++warp) {
        v = MAX ? fmaxf(v, parts[warp]) : v + parts[warp];
    }
    __syncthreads();
    return v;
}

extern "C" __global__ void __launch_bounds__(THREADS) rms_norm(
    const Step* step, float* hidden, const u16* y, Scales scales, const float* weight, u16* x, u32* x8,
    float* x_scales, u32 width, float eps) {
    let_next_start();
    wait_for_previous();
    for (u32 r = blockIdx.x; r < step->rows; r += gridDim.x) {
        float* h = hidden + (u64)r * width;
        float values[PIECES][8];
        float sum = 0.0f;
#if WEIGHT_BITS == 8
        const float row_scale = y == nullptr ? 0.0f : scales.rows[r];
#endif
#pragma unroll
        for (int p = 0; p < PIECES; ++p) {
            const u32 i = (p * THREADS + threadIdx.x) * 8;
            if (i >= width) {
                continue;
            }
            load8(h + i, values[p]);
            if (y != nullptr) {
                float add[8];
                unpack8(*(const uint4*)(y + (u64)r * width + i), add);
#if WEIGHT_BITS == 8
                float output_scales[8];
                load8(scales.outputs + i, output_scales);
#endif
#pragma unroll
                for (int j = 0; j < 8; ++j) {
#if WEIGHT_BITS == 8
                    add[j] *= row_scale * output_scales[j];
#endif
                    values[p][j] += add[j];
                }
                store8(h + i, values[p]);
            }
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                sum += values[p][j] * values[p][j];
            }
        }
        const float scale = rsqrtf(over_block<false>(sum) / width + eps);
        float most = 0.0f;
#pragma unroll
        for (int p = 0; p < PIECES; ++p) {
            const u32 i = (p * THREADS + threadIdx.x) * 8;
            if (i >= width) {
                continue;
            }
            float weights[8];
            load8(weight + i, weights);
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                values[p][j] *= scale * weights[j];
                most = fmaxf(most, fabsf(values[p][j]));
            }
            *(uint4*)(x + (u64)r * width + i) = pack8(values[p]);
        }
#if WEIGHT_BITS == 8
        most = fmaxf(over_block<true>(most), 1e-12f);
        const float to_8 = E4M3_MAX / most;
        if (threadIdx.x == 0) {
            x_scales[r] = most / E4M3_MAX;
        }
#pragma unroll
        for (int p = 0; p < PIECES; ++p) {
            const u32 i = (p * THREADS + threadIdx.x) * 8;
            if (i < width) {
                *(uint2*)(x8 + ((u64)r * width + i) / 4) = to_e4m3x8(values[p], to_8);
            }
        }
#endif
    }
}
