// A step's plan, out of page-locked host memory. The multiprocessors read it themselves: a copy engine
// would let it wait behind the adapters that are on their way to the device.

const u32 PLAN_PARTS = 10;

// In units of 16 bytes.
struct PlanParts {
    u32 first[PLAN_PARTS];
    u32 count[PLAN_PARTS];
};

// `units` are those of all parts together: each thread has one under way, so that all wait once.
extern "C" __global__ void __launch_bounds__(256) copy_plan(
    uint4* to, const uint4* from, PlanParts parts, u32 units) {
    for (u32 unit = blockIdx.x * blockDim.x + threadIdx.x; unit < units; unit += gridDim.x * blockDim.x) {
        u32 i = unit;
        for (u32 part = 0; part < PLAN_PARTS; part++) {
            if (i < parts.count[part]) {
                to[parts.first[part] + i] = from[parts.first[part] + i];
                break;
            }
            i -= parts.count[part];
        }
    }
}
