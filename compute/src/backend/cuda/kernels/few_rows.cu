// y = W x for up to 8 rows, and z = A x for those with adapters. A thread block owns 16 outputs at a
// time, or 16 ranks of an adapter, and all of the inputs, which its warps share out; weights are the
// rows of the matrix instruction, the step's rows its columns. Weights are always two loads ahead,
// also from one 16 outputs to the next, and before the kernel before has ended: they depend on
// nothing.

#define WARPS 8
// Inputs of one step of a warp: 128 bytes of each of 16 weight rows.
#define STRIDE 64

struct Weights {
    uint4 upper[2], lower[2]; // rows g and g + 8, inputs from 8 q and from 32 + 8 q
};

// Where a warp loads next.
struct Place {
    const u16* weights;
    u32 outputs, inputs;
    u32 first; // of the 16 outputs
    u32 k;
};

__device__ __forceinline__ Weights load(Place& at) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    Weights w;
    const u16* upper = at.weights + (u64)min(at.first + g, at.outputs - 1) * at.inputs + 8 * q + at.k;
    const u16* lower = at.weights + (u64)min(at.first + g + 8, at.outputs - 1) * at.inputs + 8 * q + at.k;
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

// The weights that a warp multiplies next, and where those after them lie.
struct Ahead {
    Place at;
    Weights next, after;

    __device__ __forceinline__ void start(const u16* weights, u32 outputs, u32 inputs, u32 first) {
        at = {weights, outputs, inputs, first, threadIdx.x / 32 * STRIDE};
        next = load(at);
        after = load(at);
    }
};

__shared__ float sums[2][WARPS][8][16];

// Multiplies 16 outputs. Thread 16 r + i gets output i of row r; `turn` alternates from one call to
// the next, so that a block waits for its threads once in each.
__device__ __forceinline__ float multiply(Ahead& ahead, const u16* x, u32 inputs, u32 rows, u32 turn) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    const u16* own_x = x + (u64)g * inputs + 8 * q;
    float acc[4] = {};
    // One step at least, as `load` counts them.
    u32 k = warp * STRIDE;
    do {
        const Weights now = ahead.next;
        ahead.next = ahead.after;
        ahead.after = load(ahead.at);
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
    __syncthreads();
    float sum = 0.0f;
    if (threadIdx.x < 8 * 16) {
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
            sum += sums[turn][w][threadIdx.x / 16][threadIdx.x % 16];
        }
    }
    return sum;
}

// Whose z is computed, for one group of linears. `step` of null: nobody's.
struct RowAdapters {
    const Step* step;
    const Tile* tiles;
    u16* z;
    u32 z_stride, layer, group, first_linear, linears, unused;

    __device__ __forceinline__ u32 first_tile() const { return step == nullptr ? 0 : step->first_adapted_tile; }
    __device__ __forceinline__ u32 end() const { return step == nullptr ? 0 : step->tiles; }
    __device__ __forceinline__ const AdapterLayer& of(const Tile& tile) const {
        return ((const AdapterLayer*)tile.adapter)[layer];
    }
    // Of 16 ranks.
    __device__ __forceinline__ u32 items(const Tile& tile) const { return (of(tile).groups[group].ranks + 15) / 16; }

    __device__ __forceinline__ u32 all_items() const {
        u32 count = 0;
        for (u32 t = first_tile(), last = end(); t < last; ++t) {
            count += items(tiles[t]);
        }
        return count;
    }
};

// Up to a multiple of 8 behind a module's last rank there are zeros, because `expand` reads past it.
__device__ __forceinline__ void store(
    const RowAdapters& to, const AdapterLayer& adapter, u32 row, u32 rank, float value) {
    for (u32 linear = to.first_linear; linear < to.first_linear + to.linears; ++linear) {
        const AdapterModule& module = adapter.modules[linear];
        if (rank < module.rank) {
            u16* z = to.z + (u64)row * to.z_stride + module.z;
            z[rank] = to_bf16(value);
            for (u32 behind = rank + 1; rank == module.rank - 1 && behind % 8 != 0; ++behind) {
                z[behind] = 0;
            }
            return;
        }
        rank -= module.rank;
    }
}

// The items of the adapters' ranks that are this block's, from `index` on.
__device__ __forceinline__ void shrink(
    const RowAdapters& to, const u16* x, u32 inputs, u32 rows, u32 index, u32 count, u32 turn) {
    const u32 row = threadIdx.x / 16;
#pragma unroll 1
    for (; index < count; index += gridDim.x, turn ^= 1) {
        u32 t = to.first_tile(), first = index, items;
        while (items = to.items(to.tiles[t]), first >= items) {
            first -= items;
            ++t;
        }
        const Tile tile = to.tiles[t];
        const AdapterLayer& adapter = to.of(tile);
        const AdapterGroup& group = adapter.groups[to.group];
        Ahead ahead;
        // What is beyond these 16 is loaded by nobody: a block's next lie elsewhere.
        ahead.start((const u16*)(tile.adapter + group.a), min(16 * first + 16, group.ranks), inputs, 16 * first);
        const float sum = multiply(ahead, x, inputs, rows, turn);
        const u32 rank = 16 * first + threadIdx.x % 16;
        if (row >= tile.first_row && row < tile.first_row + tile.rows && rank < group.ranks) {
            store(to, adapter, row, rank, sum);
        }
    }
}

template <bool WIDE>
__device__ __forceinline__ void few_rows(
    const u16* weights, const u16* x, void* y, u32 outputs, u32 inputs, u32 rows, const RowAdapters& adapters) {
    let_next_start();
    Ahead ahead;
    ahead.start(weights, outputs, inputs, blockIdx.x * 16);
    const u32 rank_items = WIDE ? 0 : adapters.all_items();
    wait_for_previous();
    const u32 row = threadIdx.x / 16;
    u32 turn = 0, item = blockIdx.x;
    for (; 16 * item < outputs; item += gridDim.x, turn ^= 1) {
        const float sum = multiply(ahead, x, inputs, rows, turn);
        const u32 output = 16 * item + threadIdx.x % 16;
        if (row < rows && output < outputs) {
            const u64 to = (u64)row * outputs + output;
            if (WIDE) {
                ((float*)y)[to] = sum;
            } else {
                ((u16*)y)[to] = to_bf16(sum);
            }
        }
    }
    if (!WIDE) {
        // The blocks that have fewer outputs come first.
        shrink(adapters, x, inputs, rows, item - (outputs + 15) / 16, rank_items, turn);
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 3) few_rows_bf16(
    const u16* weights, const u16* x, void* y, u32 outputs, u32 inputs, u32 rows, RowAdapters adapters) {
    few_rows<false>(weights, x, y, outputs, inputs, rows, adapters);
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 3) few_rows_f32(
    const u16* weights, const u16* x, void* y, u32 outputs, u32 inputs, u32 rows) {
    few_rows<true>(weights, x, y, outputs, inputs, rows, {});
}
