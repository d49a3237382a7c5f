// y = W x for up to 8 rows. A thread block owns 16 outputs at a time and all of the inputs, which
// its warps share out; weights are the rows of the matrix instruction, the step's rows its columns.
// Weights are always two loads ahead, also from one 16 outputs to the next, and before the kernel
// before has ended: they depend on nothing.

#define WARPS 8
// Inputs of one step of a warp: 128 bytes of each of 16 weight rows.
#define STRIDE 64

struct Weights {
    uint4 upper[2], lower[2]; // rows g and g + 8, inputs from 8 q and from 32 + 8 q
};

// Where a warp loads next.
struct Place {
    u32 outputs, inputs;
    u32 first; // of the 16 outputs
    u32 k;
};

__device__ __forceinline__ Weights load(const u16* weights, Place& at) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    Weights w;
    const u16* upper = weights + (u64)min(at.first + g, at.outputs - 1) * at.inputs + 8 * q + at.k;
    const u16* lower = weights + (u64)min(at.first + g + 8, at.outputs - 1) * at.inputs + 8 * q + at.k;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const bool exists = at.first < at.outputs && at.k + 32 * half + 8 * q < at.inputs;
        w.upper[half] = exists ? __ldcs((const uint4*)(upper + 32 * half)) : zero16();
        w.lower[half] = exists ? __ldcs((const uint4*)(lower + 32 * half)) : zero16();
    }
    at.k += WARPS * STRIDE;
    if (at.k >= at.inputs) {
        at.k = warp * STRIDE;
        at.first += 16 * gridDim.x;
    }
    return w;
}

template <bool WIDE>
__device__ __forceinline__ void few_rows(
    const u16* weights, const u16* x, void* y, u32 outputs, u32 inputs, u32 rows) {
    __shared__ float sums[2][WARPS][8][16];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    Place at = {outputs, inputs, blockIdx.x * 16, (u32)warp * STRIDE};
    Weights next = load(weights, at), after = load(weights, at);
    wait_for_previous();
    let_next_start();
    const u16* own_x = x + (u64)g * inputs + 8 * q;
    u32 turn = 0;
    for (u32 first = blockIdx.x * 16; first < outputs; first += 16 * gridDim.x, turn ^= 1) {
        float acc[4] = {};
        // One step at least, as `load` counts them.
        u32 k = warp * STRIDE;
        do {
            const Weights now = next;
            next = after;
            after = load(weights, at);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const u32 from = k + 32 * half;
                const bool exists = g < rows && from + 8 * q < inputs;
                const uint4 b = exists ? *(const uint4*)(own_x + from) : zero16();
                mma32(acc, now.upper[half], now.lower[half], b);
            }
            k += WARPS * STRIDE;
        } while (k < inputs);
        float(&own)[8][16] = sums[turn][warp];
        own[2 * q][g] = acc[0];
        own[2 * q + 1][g] = acc[1];
        own[2 * q][g + 8] = acc[2];
        own[2 * q + 1][g + 8] = acc[3];
        // Once for each 16 outputs: the next ones are summed elsewhere.
        __syncthreads();
        const u32 row = threadIdx.x / 16, output = first + threadIdx.x % 16;
        if (row < rows && output < outputs) {
            float sum = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; ++w) {
                sum += sums[turn][w][row][threadIdx.x % 16];
            }
            const u64 to = (u64)row * outputs + output;
            if (WIDE) {
                ((float*)y)[to] = sum;
            } else {
                ((u16*)y)[to] = to_bf16(sum);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 3) few_rows_bf16(
    const u16* weights, const u16* x, void* y, u32 outputs, u32 inputs, u32 rows) {
    few_rows<false>(weights, x, y, outputs, inputs, rows);
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 3) few_rows_f32(
    const u16* weights, const u16* x, void* y, u32 outputs, u32 inputs, u32 rows) {
    few_rows<true>(weights, x, y, outputs, inputs, rows);
}
