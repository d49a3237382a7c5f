// Put before every kernel's source: number formats, tensor cores, and what a step and an adapter
// look like in device memory. No header of CUDA's is needed, so that NVRTC alone compiles it.
//
// Layout of a fragment. A warp computes 16 rows; lane = 4 g + q. A dot product does not care in
// which order it sums, so a lane reads 16 contiguous bytes (8 values) of a row where the
// instruction's own layout would have it read four times 4 bytes: `mma32` consumes 32 values of k,
// of which lane q holds those from 8 q. Columns are permuted likewise: of a group of 32 columns, a
// lane holds the 8 from 8 q, of rows g and g + 8, as acc[tile][0..1] and acc[tile][2..3].

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Rows of a tile: those of one matrix instruction.
#define TILE_ROWS 16
// Tokens of a KV block.
#define BLOCK_TOKENS 16

// One token position.
struct Row {
    int token; // at least 0: an id; below: -1 - index of the token that the last step sampled
    u32 position;
    u32 block; // physical KV block that takes its key and value
    u32 unused;
};

// At most TILE_ROWS neighbouring rows of one adapter.
struct Tile {
    u64 adapter; // address of its extent; 0: the base model alone
    u32 first_row;
    u32 rows;
};

// Counts of a step. Kernels read them here, not from their arguments, so that a captured graph
// serves every step of its size.
struct Step {
    u32 rows;
    u32 tiles;
    u32 first_adapted_tile; // tiles of the base model alone stand first
    u32 attention_items;
    u32 combine_items;
    u32 logit_rows;
    u32 slices[4];       // of the shrink's sum, for each group of linears
    u32 slice_length[4]; // inputs of a slice
    u32 first_adapted_row;
    u32 adapted_rows;
};

// An adapter's extent starts with one of these for each layer. Offsets are in bytes from the start
// of the extent, which may therefore move.
struct AdapterGroup {
    u64 a; // the A matrices of the group's linears, one below the other: ranks x inputs
    u32 ranks;
    u32 unused;
};
struct AdapterModule {
    u64 b;    // outputs x rank
    u64 gain; // DoRA: one f32 for each output; 0: none
    u32 rank; // 0: not targeted
    u32 z;    // first column of this module in a row of z; a multiple of 8
    float scale;
    u32 unused;
};
struct AdapterLayer {
    AdapterGroup groups[4];   // qkv, o, gate up, down
    AdapterModule modules[7]; // q, k, v, o, gate, up, down
};

__device__ __forceinline__ float low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ float to_float(u16 v) { return __uint_as_float((u32)v << 16); }

__device__ __forceinline__ u32 pack(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ __forceinline__ u16 to_bf16(float v) { return (u16)pack(v, 0.0f); }

__device__ __forceinline__ void mma16(
    float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// 32 values of k: `upper` and `lower` are those of rows g and g + 8, `b` those of column g.
__device__ __forceinline__ void mma32(float (&d)[4], const uint4& upper, const uint4& lower, const uint4& b) {
    mma16(d, upper.x, lower.x, upper.y, lower.y, b.x, b.y);
    mma16(d, upper.z, lower.z, upper.w, lower.w, b.z, b.w);
}

// Column, inside a group of 32, of the B operand's column `n` of the given tile.
__device__ __forceinline__ int permuted(int tile, int n) { return 8 * (n >> 1) + 2 * tile + (n & 1); }

__device__ __forceinline__ uint4 zero16() { return make_uint4(0, 0, 0, 0); }

// 8 values at any address, of which only the first `valid` exist; the others are 0.
__device__ __forceinline__ uint4 load8(const u16* p, int valid) {
    u32 words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        u32 first = 2 * i < valid ? p[2 * i] : 0;
        u32 second = 2 * i + 1 < valid ? p[2 * i + 1] : 0;
        words[i] = first | second << 16;
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ __forceinline__ void unpack8(const uint4& v, float (&out)[8]) {
    out[0] = low(v.x); out[1] = high(v.x);
    out[2] = low(v.y); out[3] = high(v.y);
    out[4] = low(v.z); out[5] = high(v.z);
    out[6] = low(v.w); out[7] = high(v.w);
}

__device__ __forceinline__ uint4 pack8(const float (&v)[8]) {
    return make_uint4(pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7]));
}

struct Range {
    u32 start, end;
};

// This warp's share of the items, all neighbours: they are mostly of one tile, whose descriptions
// then come out of the L1 cache.
__device__ __forceinline__ Range warp_share(u32 items) {
    const u32 warps = gridDim.x * blockDim.x / 32, warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    const u32 share = (items + warps - 1) / warps;
    const u32 start = min(warp * share, items);
    return {start, min(start + share, items)};
}

__device__ __forceinline__ const AdapterModule* module_of(const Tile& tile, int layer, int linear) {
    if (tile.adapter == 0) {
        return nullptr;
    }
    const AdapterModule* module = &((const AdapterLayer*)tile.adapter)[layer].modules[linear];
    return module->rank == 0 ? nullptr : module;
}

// acc += B z for 32 GROUPS columns; `b` is the first column's row of B. ALIGNED: the rank is a
// multiple of 8, so that every row of B starts at 16 bytes.
template <int GROUPS, bool ALIGNED>
__device__ __forceinline__ void expand_from(
    float (&acc)[GROUPS][4][4], const Tile& tile, const u16* b, int rank, const u16* z, int z_stride) {
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    const u16* upper_z = z + (u64)g * z_stride;
    const u16* lower_z = upper_z + (u64)8 * z_stride;
    const bool has_upper = g < tile.rows, has_lower = g + 8 < tile.rows;
    for (int k = 8 * q; k - 8 * q < rank; k += 32) {
        const bool exists = k < rank;
        const uint4 upper = exists && has_upper ? *(const uint4*)(upper_z + k) : zero16();
        const uint4 lower = exists && has_lower ? *(const uint4*)(lower_z + k) : zero16();
        // From one tile to the next, a lane's column moves by 2.
        const u16* from = b + permuted(0, g) * rank + k;
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
            // All loads first: one after the other they would wait for memory each time.
            uint4 columns[4];
#pragma unroll
            for (int t = 0; t < 4; ++t) {
                if (ALIGNED) {
                    columns[t] = exists ? *(const uint4*)from : zero16();
                } else {
                    columns[t] = load8(from, rank - k);
                }
                from += 2 * rank;
            }
            from += 24 * rank;
#pragma unroll
            for (int t = 0; t < 4; ++t) {
                mma32(acc[group][t], upper, lower, columns[t]);
            }
        }
    }
}

// acc = B z for 32 GROUPS columns from `column` on of one adapter's linear; 0 without an adapter.
template <int GROUPS>
__device__ __forceinline__ void expand(
    float (&acc)[GROUPS][4][4], const Tile& tile, const AdapterModule* module, const u16* z,
    int z_stride, int column) {
#pragma unroll
    for (int i = 0; i < GROUPS * 16; ++i) {
        acc[i / 16][i / 4 % 4][i % 4] = 0.0f;
    }
    if (module == nullptr) {
        return;
    }
    const int rank = module->rank;
    const u16* b = (const u16*)(tile.adapter + module->b) + (u64)column * rank;
    const u16* own_z = z + (u64)tile.first_row * z_stride + module->z;
    if (rank % 8 == 0) {
        expand_from<GROUPS, true>(acc, tile, b, rank, own_z, z_stride);
    } else {
        expand_from<GROUPS, false>(acc, tile, b, rank, own_z, z_stride);
    }
}

// 8 outputs of a row, from `column` on: the base's, plus what the adapter adds.
__device__ __forceinline__ void adapted(
    float (&out)[8], const uint4& base, const float (&acc)[4][4], bool lower_row,
    const Tile& tile, const AdapterModule* module, int column) {
    unpack8(base, out);
    if (module == nullptr) {
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        out[i] += module->scale * acc[i / 2][(lower_row ? 2 : 0) + i % 2];
    }
    if (module->gain != 0) {
        const float* gain = (const float*)(tile.adapter + module->gain) + column;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            out[i] *= gain[i];
        }
    }
}
