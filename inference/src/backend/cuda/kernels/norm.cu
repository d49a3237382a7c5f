// hidden += y (when y is given), x = hidden / rms(hidden) * weight

extern "C" __global__ void __launch_bounds__(256) rms_norm(
    const Step* step, float* hidden, const u16* y, const float* weight, u16* x, u32 width, float eps) {
    __shared__ float sums[8];
    for (u32 r = blockIdx.x; r < step->rows; r += gridDim.x) {
        float* h = hidden + (u64)r * width;
        float sum = 0.0f;
        for (u32 i = threadIdx.x * 8; i < width; i += blockDim.x * 8) {
            float4 first = *(float4*)(h + i), second = *(float4*)(h + i + 4);
            if (y != nullptr) {
                float add[8];
                unpack8(*(const uint4*)(y + (u64)r * width + i), add);
                first = make_float4(first.x + add[0], first.y + add[1], first.z + add[2], first.w + add[3]);
                second = make_float4(second.x + add[4], second.y + add[5], second.z + add[6], second.w + add[7]);
                *(float4*)(h + i) = first;
                *(float4*)(h + i + 4) = second;
            }
            sum += first.x * first.x + first.y * first.y + first.z * first.z + first.w * first.w;
            sum += second.x * second.x + second.y * second.y + second.z * second.z + second.w * second.w;
        }
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) {
            sum += __shfl_xor_sync(0xffffffffu, sum, offset);
        }
        if (threadIdx.x % 32 == 0) {
            sums[threadIdx.x / 32] = sum;
        }
        __syncthreads();
        float total = 0.0f;
#pragma unroll
        for (int warp = 0; warp < 8; ++warp) {
            total += sums[warp];
        }
        const float scale = rsqrtf(total / width + eps);
        // Each thread reads back only what it wrote.
        for (u32 i = threadIdx.x * 8; i < width; i += blockDim.x * 8) {
            float out[8];
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                out[j] = h[i + j] * scale * weight[i + j];
            }
            *(uint4*)(x + (u64)r * width + i) = pack8(out);
        }
        __syncthreads();
    }
}
