// Put before every kernel's source: number formats, tensor cores, and what a step and an adapter
// look like in device memory. What only some kernels share stands in files of its own. No header of
// CUDA's is needed, so that NVRTC alone compiles them.
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

// 8 neighbouring floats, aligned to 16 bytes.
__device__ __forceinline__ void load8(const float* from, float (&out)[8]) {
    *(float4*)out = *(const float4*)from;
    *(float4*)(out + 4) = *(const float4*)(from + 4);
}

__device__ __forceinline__ void store8(float* to, const float (&v)[8]) {
    *(float4*)to = make_float4(v[0], v[1], v[2], v[3]);
    *(float4*)(to + 4) = make_float4(v[4], v[5], v[6], v[7]);
}

// Over the 8 lanes that have the same q.
template <bool MAX> __device__ __forceinline__ float over_g(float v) {
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, v, offset);
        v = MAX ? fmaxf(v, other) : v + other;
    }
    return v;
}

// 2^v, 0 for a large negative v.
__device__ __forceinline__ float power_of_two(float v) {
    float p;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(p) : "f"(v));
    return p;
}

// Launches may overlap the end of the kernel before: what that one wrote, or may still read, must
// not be touched before this. Every thread block passes here, so that "the kernel before" includes
// all earlier ones.
__device__ __forceinline__ void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// The next kernel's thread blocks may take their places, once all of this one have theirs. They wait
// for this one's end, and so for that of all before it: it is called first.
__device__ __forceinline__ void let_next_start() { asm volatile("griddepcontrol.launch_dependents;"); }

// Scales that a product with 8-bit weights leaves out: of each row, and of each output.
struct Scales {
    const float* rows; // null: products are whole
    const float* outputs;
};

// Largest finite e4m3.
#define E4M3_MAX 448.0f

__device__ __forceinline__ u32 to_e4m3x4(float a, float b, float c, float d) {
    u16 first, second;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(first) : "f"(b), "f"(a));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(second) : "f"(d), "f"(c));
    return (u32)first | (u32)second << 16;
}

__device__ __forceinline__ uint2 to_e4m3x8(const float (&v)[8], float factor) {
    return make_uint2(
        to_e4m3x4(v[0] * factor, v[1] * factor, v[2] * factor, v[3] * factor),
        to_e4m3x4(v[4] * factor, v[5] * factor, v[6] * factor, v[7] * factor));
}

__device__ __forceinline__ float e4m3_to_float(unsigned char v) {
    u32 halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"((u16)v));
    float f;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}" : "=f"(f) : "r"(halves));
    return f;
}
