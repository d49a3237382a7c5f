// Put before every kernel's source: number formats, tensor cores, and what a step and an adapter
// look like in device memory. No header of CUDA's is needed, so that NVRTC alone compiles it.
//
// Layout of a fragment. A warp computes 16 rows; lane = 4 g + q. A dot product does not care in
// which order it sums, so a lane reads 16 contiguous bytes (8 values) of a row where the
// instruction's own layout would have it read four times 4 bytes: `mma32` consumes 32 values of k,
// of which lane q holds those from 8 q. Where memory is what counts, weights (or keys) are the 16
// rows and the rows of the step are the 8 columns: few of them then waste nothing.
//
// Code is kept short: between two launches of a kernel the weights of a layer have passed through
// the L2 cache, and straight-line code that runs once waits for its own instructions.

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
    u32 decode_items;
    u32 logit_rows;
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

__device__ __forceinline__ uint4 zero16() { return make_uint4(0, 0, 0, 0); }

__device__ __forceinline__ void unpack8(const uint4& v, float (&out)[8]) {
    out[0] = low(v.x); out[1] = high(v.x);
    out[2] = low(v.y); out[3] = high(v.y);
    out[4] = low(v.z); out[5] = high(v.z);
    out[6] = low(v.w); out[7] = high(v.w);
}

__device__ __forceinline__ uint4 pack8(const float (&v)[8]) {
    return make_uint4(pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7]));
}

// 2^v, 0 for a large negative v.
__device__ __forceinline__ float power_of_two(float v) {
    float p;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(p) : "f"(v));
    return p;
}

// Warps of the thread blocks that expand adapters.
#define EXPAND_WARPS 4

// This warp's items of a work of `tiles x columns`, all neighbours. The warps of a thread block have
// neighbouring tiles and the same column: where the tiles are of one adapter, its weights come out
// of the L1 cache for all but one.
struct Share {
    u32 tiles, columns;
    u32 next, end;
    u32 tile, column;

    __device__ __forceinline__ bool take() {
        if (next >= end) {
            return false;
        }
        const u32 group = next / (EXPAND_WARPS * columns), rest = next % (EXPAND_WARPS * columns);
        const u32 width = min((u32)EXPAND_WARPS, tiles - EXPAND_WARPS * group);
        tile = EXPAND_WARPS * group + rest % width;
        column = rest / width;
        next += EXPAND_WARPS;
        return true;
    }
};

__device__ __forceinline__ Share share_of(u32 tiles, u32 columns) {
    const u32 items = tiles * columns, turns = (items + EXPAND_WARPS - 1) / EXPAND_WARPS;
    const u32 start = (u64)blockIdx.x * turns / gridDim.x * EXPAND_WARPS;
    const u32 end = (u64)(blockIdx.x + 1) * turns / gridDim.x * EXPAND_WARPS;
    return {tiles, columns, start + threadIdx.x / 32, min(end, items)};
}

__device__ __forceinline__ const AdapterModule* module_of(const Tile& tile, int layer, int linear) {
    if (tile.adapter == 0) {
        return nullptr;
    }
    const AdapterModule* module = &((const AdapterLayer*)tile.adapter)[layer].modules[linear];
    return module->rank == 0 ? nullptr : module;
}

// Launches may overlap the end of the kernel before: what that one wrote, or may still read, must
// not be touched before this. Every thread block passes here, so that "the kernel before" includes
// all earlier ones.
__device__ __forceinline__ void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// The next kernel's thread blocks may take their places.
__device__ __forceinline__ void let_next_start() { asm volatile("griddepcontrol.launch_dependents;"); }

// 4 values at any address, of which only the first `valid` exist; the others are 0.
__device__ __forceinline__ uint2 load4(const u16* p, int valid) {
    u32 words[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        u32 first = 2 * i < valid ? p[2 * i] : 0;
        u32 second = 2 * i + 1 < valid ? p[2 * i + 1] : 0;
        words[i] = first | second << 16;
    }
    return make_uint2(words[0], words[1]);
}

// What an adapter adds to 64 columns of one linear, for up to 8 rows. A lane holds columns 8 g to
// 8 g + 7 of rows 2 q and 2 q + 1.
struct Update {
    const AdapterModule* module; // null: nothing
    const u16* b;                // row of B of this lane's first column
    const u16* z;                // this lane's (row g) part of z; null: no such row
};

__device__ __forceinline__ Update update_of(
    const Tile& tile, const AdapterModule* module, u32 column, const u16* z, u32 z_stride, u32 first_row) {
    const int g = threadIdx.x % 32 / 4;
    Update update = {module, nullptr, nullptr};
    if (module != nullptr) {
        update.b = (const u16*)(tile.adapter + module->b) + (u64)(column + 8 * g) * module->rank;
        if (first_row + g < tile.rows) {
            update.z = z + (u64)(tile.first_row + first_row + g) * z_stride + module->z;
        }
    }
    return update;
}

template <int N, bool ALIGNED>
__device__ __forceinline__ void expand_ranks(
    float (&acc)[N][4][4], const Update (&updates)[N], const int (&ranks)[N], int most) {
    const int q = threadIdx.x % 4;
#pragma unroll 1
    for (int k = 4 * q; k - 4 * q < most; k += 16) {
        // All loads first: one after the other they would wait for memory each time.
        uint2 columns[N][8], z[N];
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const bool exists = k < ranks[n];
#pragma unroll
            for (int c = 0; c < 8; ++c) {
                const u16* from = updates[n].b + c * ranks[n] + k;
                if (ALIGNED) {
                    columns[n][c] = exists ? *(const uint2*)from : make_uint2(0, 0);
                } else {
                    columns[n][c] = load4(from, ranks[n] - k);
                }
            }
            z[n] = exists && updates[n].z != nullptr ? *(const uint2*)(updates[n].z + k) : make_uint2(0, 0);
        }
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const uint2 even = columns[n][2 * j], odd = columns[n][2 * j + 1];
                mma16(acc[n][j], even.x, odd.x, even.y, odd.y, z[n].x, z[n].y);
            }
        }
    }
}

// acc = B z for each update. Column 8 g + 2 j + i of row 2 q + half is acc[j][2 i + half].
template <int N>
__device__ __forceinline__ void expand(float (&acc)[N][4][4], const Update (&updates)[N]) {
    int ranks[N], most = 0;
    bool aligned = true;
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            acc[n][i / 4][i % 4] = 0.0f;
        }
        ranks[n] = updates[n].module == nullptr ? 0 : updates[n].module->rank;
        most = max(most, ranks[n]);
        aligned = aligned && ranks[n] % 4 == 0;
    }
    if (aligned) {
        expand_ranks<N, true>(acc, updates, ranks, most);
    } else {
        expand_ranks<N, false>(acc, updates, ranks, most);
    }
}

// Scales that a product with 8-bit weights leaves out: of each row, and of each output.
struct Scales {
    const float* rows; // null: products are whole
    const float* outputs;
};

// 8 outputs of a row: the product's, scaled, plus what the adapter adds. `output` counts over the
// group's outputs, `column` over the linear's own.
__device__ __forceinline__ void adapted(
    float (&out)[8], const uint4& product, const float (&acc)[4][4], int half, const Tile& tile,
    const AdapterModule* module, const Scales& scales, u64 row, u32 output, u32 column) {
    unpack8(product, out);
#if WEIGHT_BITS == 8
    const float row_scale = scales.rows[row];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        out[i] *= row_scale * scales.outputs[output + i];
    }
#endif
    if (module == nullptr) {
        return;
    }
    const float scale = module->scale;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float update = half == 0 ? acc[i / 2][2 * (i % 2)] : acc[i / 2][2 * (i % 2) + 1];
        out[i] += scale * update;
    }
    if (module->gain != 0) {
        const float* gain = (const float*)(tile.adapter + module->gain) + column;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            out[i] *= gain[i];
        }
    }
}

// KV: [block][layer][key, value][kv head]; a key as [token][HEAD_DIM], a value transposed as
// [HEAD_DIM][token], so that the attention reads both in contiguous pieces. In bf16; or in e4m3, and
// then behind the heads of a block's layer follow their scales, powers of two: [kv head][token]. What
// the attention multiplies is bf16, or with e4m3 f16, which holds each e4m3 exactly.
#if KV_BITS == 8
typedef unsigned char kv_t;
#else
typedef u16 kv_t;
#endif
#define KV_HEAD (BLOCK_TOKENS * HEAD_DIM)

// Keys, or values, of a layer's part of a block.
__device__ __forceinline__ u64 kv_page(u32 kv_heads) {
    return (u64)kv_heads * (KV_HEAD + (KV_BITS == 8 ? BLOCK_TOKENS : 0));
}

#if KV_BITS == 8
__device__ __forceinline__ u32 pack_f16(float low, float high) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ __forceinline__ u32 multiply_f16(u32 a, u32 b) {
    u32 product;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
}

// A scale 2^(v - 15) is kept as v, the exponent of an f16.
__device__ __forceinline__ float scale_of(u32 v) { return __uint_as_float((v + 112) << 23); }

// Those of two neighbouring tokens, of the bytes of `scales` from `first` on, as f16.
__device__ __forceinline__ u32 scale_pair(u32 scales, int first) {
    const u32 pair = scales >> 8 * first;
    return (pair & 0xff) << 10 | (pair >> 8 & 0xff) << 26;
}

// 4 e4m3 as two pairs of f16.
__device__ __forceinline__ uint2 widen4(u32 v) {
    uint2 wide;
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %2;\n"
        "cvt.rn.f16x2.e4m3x2 %0, low; cvt.rn.f16x2.e4m3x2 %1, high;}"
        : "=r"(wide.x), "=r"(wide.y)
        : "r"(v));
    return wide;
}

__device__ __forceinline__ uint4 widen8(u32 first, u32 second) {
    const uint2 a = widen4(first), b = widen4(second);
    return make_uint4(a.x, a.y, b.x, b.y);
}
#endif

// Two numbers as the attention multiplies them.
__device__ __forceinline__ u32 pack_factors(float low, float high) {
#if KV_BITS == 8
    return pack_f16(low, high);
#else
    return pack(low, high);
#endif
}

__device__ __forceinline__ void mma16_factors(
    float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#if KV_BITS == 8
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
    mma16(d, a0, a1, a2, a3, b0, b1);
#endif
}

__device__ __forceinline__ void mma32_factors(
    float (&d)[4], const uint4& upper, const uint4& lower, const uint4& b) {
    mma16_factors(d, upper.x, lower.x, upper.y, lower.y, b.x, b.y);
    mma16_factors(d, upper.z, lower.z, upper.w, lower.w, b.z, b.w);
}

// The dimension of a head from which a lane holds 8 in part `c` of 32: what 16 bytes of a key hold
// stays together.
__device__ __forceinline__ u32 factor_place(int c, int q) {
    return KV_BITS == 8 ? c / 2 * 64 + 16 * q + c % 2 * 8 : 32 * c + 8 * q;
}

// Largest finite e4m3.
#define E4M3_MAX 448.0f

__device__ __forceinline__ u32 to_e4m3x4(float a, float b, float c, float d) {
    u16 first, second;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(first) : "f"(b), "f"(a));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(second) : "f"(d), "f"(c));
    return (u32)first | (u32)second << 16;
}

__device__ __forceinline__ float e4m3_to_float(unsigned char v) {
    u32 halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"((u16)v));
    float f;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}" : "=f"(f) : "r"(halves));
    return f;
}
