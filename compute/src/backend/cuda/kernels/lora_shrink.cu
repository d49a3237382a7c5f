// z[row] = A x[row] for the linears of a group that read the same x.
//
// A cluster of thread blocks takes a tile of rows, or where there are more clusters than tiles, some
// of the ranks of one; each block sums a slice of the inputs, and the
// blocks then read each other's shared memory and add the slices, always in the same order, so that
// the result does not depend on timing. The first of A is on its way before the kernel before, which
// writes x, has ended.

#define WARPS 8
// Tiles of 8 ranks summed at a time, at most.
#define RANK_TILES 6
#define RANKS (RANK_TILES * 8)
// Clusters that share a tile, at most.
#define PARTS 4
// Pieces of A that a lane has under way.
#define PIECES 12

__device__ __forceinline__ u32 cluster_rank() {
    u32 v;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(v));
    return v;
}

__device__ __forceinline__ u32 cluster_blocks() {
    u32 v;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(v));
    return v;
}

// What was written to shared memory before is seen by all blocks of the cluster afterwards.
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// The value at the same place of another block's shared memory.
__device__ __forceinline__ float load_from(u32 block, const float* own) {
    float v;
    asm volatile(
        "{.reg .u32 there;\nmapa.shared::cluster.u32 there, %1, %2;\nld.shared::cluster.f32 %0, [there];}"
        : "=f"(v)
        : "r"((u32)__cvta_generic_to_shared(own)), "r"(block)
        : "memory");
    return v;
}

// A turn's part of the sum: up to RANKS ranks, over this block's inputs.
struct Slice {
    const u16* a; // this lane's first value of rank g
    u32 ranks;    // from the first of this turn on
    u32 inputs;   // of a row of A
    u32 start, end;
    const u16 *upper_x, *lower_x; // null: no such row
};

template <int T>
__device__ __forceinline__ void load(uint4 (&pieces)[PIECES], const Slice& slice, u32 k) {
    const u32 g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int i = 0; i < PIECES; ++i) {
        const u32 tile = i % T, at = k + i / T * WARPS * 32;
        const bool wanted = 8 * tile + g < slice.ranks && at < slice.end;
        pieces[i] = wanted ? __ldcs((const uint4*)(slice.a + (u64)8 * tile * slice.inputs + at)) : zero16();
    }
}

// The sums of T tiles of ranks. `wait`: x may not be there yet.
template <int T>
__device__ __forceinline__ void sum_tiles(float (&acc)[RANK_TILES][4], const Slice& slice, bool wait) {
    u32 k = slice.start + threadIdx.x / 32 * 32 + 8 * (threadIdx.x % 4);
    uint4 pieces[PIECES];
    load<T>(pieces, slice, k);
    if (wait) {
        wait_for_previous();
    }
#pragma unroll 1
    while (k < slice.end) {
        uint4 upper[PIECES / T], lower[PIECES / T];
#pragma unroll
        for (int c = 0; c < PIECES / T; ++c) {
            const u32 at = k + c * WARPS * 32;
            upper[c] = slice.upper_x != nullptr && at < slice.end ? *(const uint4*)(slice.upper_x + at) : zero16();
            lower[c] = slice.lower_x != nullptr && at < slice.end ? *(const uint4*)(slice.lower_x + at) : zero16();
        }
#pragma unroll
        for (int i = 0; i < PIECES; ++i) {
            mma32(acc[i % T], upper[i / T], lower[i / T], pieces[i]);
        }
        k += PIECES / T * WARPS * 32;
        load<T>(pieces, slice, k);
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 2) lora_shrink(
    const Step* step, const Tile* tiles, const u16* x, u32 inputs, u16* z, u32 z_stride, u32 layer,
    u32 group, u32 first_linear, u32 linears) {
    __shared__ float sums[WARPS][RANK_TILES * 4][32];
    __shared__ float own[TILE_ROWS][RANKS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4;
    const u32 rank_in_cluster = cluster_rank(), blocks = cluster_blocks();
    // Whole steps of all warps.
    const u32 length = (inputs + blocks * WARPS * 32 - 1) / (blocks * WARPS * 32) * (WARPS * 32);
    const u32 start = rank_in_cluster * length, end = min(start + length, inputs);
    const u32 clusters = gridDim.x / blocks, adapted = step->tiles - step->first_adapted_tile;
    const u32 parts = min(max(clusters / max(adapted, 1u), 1u), (u32)PARTS);
    bool is_first = true;
    let_next_start();
    for (u32 index = blockIdx.x / blocks; index < adapted * parts; index += clusters) {
        const Tile tile = tiles[step->first_adapted_tile + index / parts];
        const AdapterLayer* adapter = (const AdapterLayer*)tile.adapter + layer;
        const u32 ranks = adapter->groups[group].ranks;
        // Ranks of a turn: shared out, in whole tiles, where they are few.
        const u32 turn_ranks = min((u32)RANKS, (ranks + 8 * parts - 1) / (8 * parts) * 8);
        const u16* a = (const u16*)(tile.adapter + adapter->groups[group].a) + (u64)g * inputs;
        const u16* upper_x = x + (u64)(tile.first_row + g) * inputs;
        const u16* lower_x = upper_x + (u64)8 * inputs;
#pragma unroll 1
        for (u32 first = index % parts * turn_ranks; first < ranks; first += parts * turn_ranks) {
            const Slice slice = {
                a + (u64)first * inputs, min(ranks - first, turn_ranks), inputs, start, end,
                g < tile.rows ? upper_x : nullptr, g + 8 < tile.rows ? lower_x : nullptr};
            float acc[RANK_TILES][4] = {};
            if (slice.ranks <= 16) {
                sum_tiles<2>(acc, slice, is_first);
            } else if (slice.ranks <= 32) {
                sum_tiles<4>(acc, slice, is_first);
            } else {
                sum_tiles<6>(acc, slice, is_first);
            }
            is_first = false;
#pragma unroll
            for (int t = 0; t < RANK_TILES; ++t) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    sums[warp][t * 4 + i][lane] = acc[t][i];
                }
            }
            __syncthreads();
#pragma unroll 1
            for (int i = threadIdx.x; i < RANK_TILES * 4 * 32; i += WARPS * 32) {
                const int element = i / 32, of = i % 32;
                float sum = 0.0f;
#pragma unroll
                for (int w = 0; w < WARPS; ++w) {
                    sum += sums[w][element][of];
                }
                own[of / 4 + element % 4 / 2 * 8][element / 4 * 8 + of % 4 * 2 + element % 2] = sum;
            }
            cluster_sync();
            // Each block finishes some of the rows.
            u32 before = 0;
            for (u32 linear = first_linear; linear < first_linear + linears; ++linear) {
                const AdapterModule& module = adapter->modules[linear];
                // Up to a multiple of 8, with zeros, because `expand` reads past the rank.
                const u32 padded = (module.rank + 7) / 8 * 8;
                const u32 rows = tile.rows > rank_in_cluster ? (tile.rows - rank_in_cluster + blocks - 1) / blocks : 0;
#pragma unroll 1
                for (u32 i = threadIdx.x; i < rows * padded; i += WARPS * 32) {
                    const u32 row = rank_in_cluster + i / padded * blocks, rank = i % padded;
                    const bool exists = rank < module.rank;
                    const u32 at = before + (exists ? rank : 0);
                    // The turn that has a module's last rank also writes its zeros.
                    const u32 turn = exists ? at : before + module.rank - 1;
                    if (turn < first || turn >= first + turn_ranks) {
                        continue;
                    }
                    float sum = 0.0f;
#pragma unroll 1
                    for (u32 block = 0; exists && block < blocks; ++block) {
                        sum += load_from(block, &own[row][at - first]);
                    }
                    z[(u64)(tile.first_row + row) * z_stride + module.z + rank] = to_bf16(sum);
                }
                before += module.rank;
            }
            // Nobody may overwrite, or leave with, what another still reads.
            cluster_sync();
        }
    }
    if (is_first) {
        wait_for_previous();
    }
}
