/* How to call. In GNU C: gcc, clang. */

#if defined(__GNUC__) && defined(__x86_64__)

/* What comes back from a call. */
struct plinth_result {
    /* PLINTH_STATUS_... */
    uint64_t status;
    /* Depends on the call. */
    uint64_t value;
};

/* 1 on CPUs of AMD's kind, whose instruction is VMMCALL; 0 on the others, whose is VMCALL. */
static inline int plinth_uses_vmmcall(void)
{
    uint32_t eax = 0, ebx, ecx = 0, edx;
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    /* "AuthenticAMD", "HygonGenuine" */
    return (ebx == 0x68747541u && edx == 0x69746e65u && ecx == 0x444d4163u) ||
           (ebx == 0x6f677948u && edx == 0x6e65476eu && ecx == 0x656e6975u);
}

/* Makes a call. CPUID exits to the kernel, so ask plinth_uses_vmmcall() once and keep what it says. Arguments that the call does
   not name are ignored. */
static inline struct plinth_result plinth_call(int uses_vmmcall, uint64_t number, uint64_t first, uint64_t second, uint64_t third,
                                               uint64_t fourth, uint64_t fifth, uint64_t sixth)
{
    register uint64_t r10 __asm__("r10") = fourth;
    register uint64_t r8 __asm__("r8") = fifth;
    register uint64_t r9 __asm__("r9") = sixth;
    if (uses_vmmcall) {
        __asm__ volatile("vmmcall"
                         : "+a"(number), "+d"(third)
                         : "D"(first), "S"(second), "r"(r10), "r"(r8), "r"(r9)
                         : "memory");
    } else {
        __asm__ volatile("vmcall"
                         : "+a"(number), "+d"(third)
                         : "D"(first), "S"(second), "r"(r10), "r"(r8), "r"(r9)
                         : "memory");
    }
    struct plinth_result result = {number, third};
    return result;
}

#endif
