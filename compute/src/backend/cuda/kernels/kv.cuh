// Keys and values in device memory, and as the attention multiplies them.
//
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
// The score of a token that is not seen.
#define NOTHING __int_as_float(0xff800000)

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
