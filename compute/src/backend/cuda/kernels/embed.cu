// Rows in and out of the residual stream.

// hidden[row] = table[token of row]
extern "C" __global__ void __launch_bounds__(128) embed(
    const Step* step, const Row* rows, const u32* sampled, const u16* table, float* hidden, u32 width) {
    let_next_start();
    wait_for_previous();
    for (u32 r = blockIdx.x; r < step->rows; r += gridDim.x) {
        const int named = rows[r].token;
        const u32 token = named >= 0 ? (u32)named : sampled[-1 - named];
        const u16* in = table + (u64)token * width;
        float* out = hidden + (u64)r * width;
        for (u32 i = threadIdx.x * 8; i < width; i += blockDim.x * 8) {
            float values[8];
            unpack8(*(const uint4*)(in + i), values);
            store8(out + i, values);
        }
    }
}

// out[i] = x[row of logit i], for `count` logits from `first` on
extern "C" __global__ void __launch_bounds__(128) gather(
    const Step* step, const u32* logit_rows, const u16* x, u16* out, u32 width, u32 first, u32 count) {
    let_next_start();
    wait_for_previous();
    for (u32 i = blockIdx.x; i < count && first + i < step->logit_rows; i += gridDim.x) {
        const u16* in = x + (u64)logit_rows[first + i] * width;
        for (u32 c = threadIdx.x * 8; c < width; c += blockDim.x * 8) {
            *(uint4*)(out + (u64)i * width + c) = *(const uint4*)(in + c);
        }
    }
}
