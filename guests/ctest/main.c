/* The smallest guest in C: says that it is one, and looks at the contract through the header that `cargo xtask header` writes.
   Its status is 0, or the number of what was wrong. */

#include "plinth.h"

/* The machine starts here, with an aligned stack: a call leaves it as a C function expects it. */
__asm__(".section .text.start, \"ax\"\n"
        ".globl _start\n"
        "_start:\n"
        "xor %ebp, %ebp\n"
        "call start\n"
        "ud2\n"
        ".text\n");

static int uses_vmmcall;

static struct plinth_result call(uint64_t number, uint64_t first, uint64_t second)
{
    return plinth_call(uses_vmmcall, number, first, second, 0, 0, 0, 0);
}

/* A call takes as many bytes as it likes. */
static void print(const char *text)
{
    uint64_t length = 0;
    while (text[length] != '\0')
        length++;
    while (length > 0) {
        struct plinth_result result = call(PLINTH_CALL_CONSOLE_WRITE, (uint64_t)(uintptr_t)text, length);
        if (result.status != PLINTH_STATUS_OK || result.value == 0)
            return;
        text += result.value;
        length -= result.value;
    }
}

/* What is wrong, or 0. */
static uint64_t look(void)
{
    if ((call(PLINTH_CALL_VERSION, 0, 0).value ^ PLINTH_ABI_VERSION) >> 16 != 0)
        return 1;
    if (call(UINT64_MAX, 0, 0).status != PLINTH_STATUS_NO_CALL)
        return 2;
    if (call(PLINTH_CALL_CONSOLE_WRITE, 0, PLINTH_CALL_CONSOLE_MAX + 1).status != PLINTH_STATUS_BAD_ARGUMENT)
        return 3;
    /* Memory ends before that address. */
    if (call(PLINTH_CALL_CONSOLE_WRITE, UINT64_C(1) << 40, 1).status != PLINTH_STATUS_BAD_ADDRESS)
        return 4;
    if (call(PLINTH_CALL_HANDLE_INFO, PLINTH_HANDLE_NONE, 0).status != PLINTH_STATUS_BAD_HANDLE)
        return 5;
    uint64_t before = call(PLINTH_CALL_CLOCK, 0, 0).value;
    call(PLINTH_CALL_YIELD, 0, 0);
    if (call(PLINTH_CALL_CLOCK, 0, 0).value < before)
        return 6;
    return 0;
}

/* Called by _start. */
_Noreturn void start(void);

void start(void)
{
    uses_vmmcall = plinth_uses_vmmcall();
    print("Hello from a guest in C.\n");
    uint64_t wrong = look();
    if (wrong != 0)
        print("The contract is not kept; the status says what.\n");
    for (;;)
        call(PLINTH_CALL_END, wrong, 0);
}
