// z[row] = A x[row] for the linears of a group that read the same x.
//
// One item is a tile of rows and a slice of the inputs; the last item of a tile to finish sums the
// slices, always in the same order, so that the result does not depend on timing.

#define WARPS 4
// Tiles of 8 ranks summed at a time.
#define RANK_TILES 6
// Pieces of 32 inputs that a warp loads at a time.
#define CHUNKS 2

extern "C" __global__ void __launch_bounds__(WARPS * 32, 3) lora_shrink(
    const Step* step, const Tile* tiles, const u16* x, u32 inputs, u16* z, u32 z_stride,
    float* partials, u32* finished, u32 layer, u32 group, u32 first_linear, u32 linears) {
    __shared__ float sums[WARPS][RANK_TILES * 4][32];
    __shared__ bool is_last;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    const u32 slices = step->slices[group], length = step->slice_length[group];
    const u32 items = (step->tiles - step->first_adapted_tile) * slices;
    for (u32 item = blockIdx.x; item < items; item += gridDim.x) {
        const u32 tile_index = step->first_adapted_tile + item / slices, slice = item % slices;
        const Tile tile = tiles[tile_index];
        const AdapterLayer* adapter = (const AdapterLayer*)tile.adapter + layer;
        const u32 ranks = adapter->groups[group].ranks;
        if (ranks == 0) {
            continue;
        }
        const u16* a = (const u16*)(tile.adapter + adapter->groups[group].a);
        const u16* upper_x = x + (u64)(tile.first_row + g) * inputs;
        const u16* lower_x = upper_x + (u64)8 * inputs;
        const bool has_upper = g < tile.rows, has_lower = g + 8 < tile.rows;
        const u32 start = slice * length, end = min(start + length, inputs);
        for (u32 first = 0; first < ranks; first += RANK_TILES * 8) {
            float acc[RANK_TILES][4] = {};
            for (u32 k = start + warp * 32 + 8 * q; k < end; k += CHUNKS * WARPS * 32) {
                // All loads first: one after the other they would wait for memory each time.
                uint4 upper[CHUNKS], lower[CHUNKS], b[CHUNKS][RANK_TILES];
#pragma unroll
                for (int c = 0; c < CHUNKS; ++c) {
                    const u32 at = k + c * WARPS * 32;
                    const bool exists = at < end;
                    upper[c] = has_upper && exists ? *(const uint4*)(upper_x + at) : zero16();
                    lower[c] = has_lower && exists ? *(const uint4*)(lower_x + at) : zero16();
#pragma unroll
                    for (int t = 0; t < RANK_TILES; ++t) {
                        const u32 rank = first + 8 * t + g;
                        const bool wanted = rank < ranks && exists;
                        b[c][t] = wanted ? *(const uint4*)(a + (u64)rank * inputs + at) : zero16();
                    }
                }
#pragma unroll
                for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
                    for (int t = 0; t < RANK_TILES; ++t) {
                        mma32(acc[t], upper[c], lower[c], b[c][t]);
                    }
                }
            }
#pragma unroll
            for (int t = 0; t < RANK_TILES; ++t) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    sums[warp][t * 4 + i][lane] = acc[t][i];
                }
            }
            __syncthreads();
            for (int index = threadIdx.x; index < RANK_TILES * 4 * 32; index += WARPS * 32) {
                const int element = index / 32, of = index % 32;
                const u32 row = of / 4 + (element % 4 / 2) * 8;
                const u32 rank = first + element / 4 * 8 + of % 4 * 2 + element % 2;
                if (row < tile.rows && rank < ranks) {
                    float sum = 0.0f;
#pragma unroll
                    for (int w = 0; w < WARPS; ++w) {
                        sum += sums[w][element][of];
                    }
                    partials[(slice * (u64)step->adapted_rows + tile.first_row - step->first_adapted_row + row) * z_stride + rank] = sum;
                }
            }
            __syncthreads();
        }
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            is_last = atomicAdd(&finished[tile_index], 1) == slices - 1;
        }
        __syncthreads();
        if (!is_last) {
            continue;
        }
        __threadfence();
        u32 before = 0;
        for (u32 linear = first_linear; linear < first_linear + linears; ++linear) {
            const AdapterModule& module = adapter->modules[linear];
            // Up to a multiple of 8, with zeros, because `expand` reads 8 at a time.
            const u32 padded = (module.rank + 7) / 8 * 8;
            for (u32 index = threadIdx.x; index < tile.rows * padded; index += WARPS * 32) {
                const u32 row = tile.first_row + index / padded, rank = index % padded;
                float sum = 0.0f;
                if (rank < module.rank) {
                    const float* part = partials + (u64)(row - step->first_adapted_row) * z_stride + before + rank;
#pragma unroll 8
                    for (u32 s = 0; s < slices; ++s) {
                        sum += __ldcg(part + s * (u64)step->adapted_rows * z_stride);
                    }
                }
                z[(u64)row * z_stride + module.z + rank] = to_bf16(sum);
            }
            before += module.rank;
        }
        if (threadIdx.x == 0) {
            finished[tile_index] = 0;
        }
    }
}
