/* A plugin of QEMU's user-mode emulators: it counts the instructions that a program executes.
 *
 * Whenever the program calls prctl(MARK, …) a line with all counts since the start goes to the file named by "out=".
 * A line is: instructions loads stores simd branches syscalls. Loads, stores, SIMD and branches are told apart by the
 * encoding of A64 instructions; on any other machine they are "-".
 *
 * No header of QEMU is needed: what is used of its plugin interface stands below. Versions 1 (QEMU 4.2 to 8) and 2 to
 * 5 (QEMU 9 on) differ in nothing used here but in how an instruction's bytes are read, from version 3 on.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MARK 0x45464643u

typedef uint64_t qemu_plugin_id_t;
typedef struct {
    const char *target_name;
    struct { int min, cur; } version;
    bool system_emulation;
    int smp[2];
} qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *),
                                          enum qemu_plugin_cb_flags, void *);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t,
                                          void (*)(qemu_plugin_id_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t,
                                                   uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);

#if API < 3
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
static uint32_t word_of(const struct qemu_plugin_insn *insn) {
    uint32_t word;
    memcpy(&word, qemu_plugin_insn_data(insn), sizeof word);
    return word;
}
#else
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *, size_t);
static uint32_t word_of(const struct qemu_plugin_insn *insn) {
    uint32_t word = 0;
    qemu_plugin_insn_data(insn, &word, sizeof word);
    return word;
}
#endif

__attribute__((visibility("default"))) int qemu_plugin_version = API;

enum { ALL, LOADS, STORES, SIMD, BRANCHES, SYSCALLS, KINDS };
enum { THREADS = 1024 };

/* One row a thread, so that no two threads add to the same number. */
static uint64_t counts[THREADS][KINDS];
static bool is_a64;
static int64_t prctl_number;
static FILE *out;

static void report(void) {
    uint64_t sums[KINDS] = {0};
    for (int thread = 0; thread < THREADS; thread++)
        for (int kind = 0; kind < KINDS; kind++)
            sums[kind] += counts[thread][kind];
    for (int kind = 0; kind < KINDS; kind++) {
        if (is_a64 || kind == ALL || kind == SYSCALLS)
            fprintf(out, "%llu ", (unsigned long long)sums[kind]);
        else
            fputs("- ", out);
    }
    fputc('\n', out);
    fflush(out);
}

/* The first level of the A64 encoding: bits 28 to 25. An atomic that reads and writes counts as a load. */
static void sort_a64(uint64_t *kinds, uint32_t word) {
    unsigned group = word >> 25 & 15;
    if ((group & 5) == 4) {
        bool is_literal = (word >> 27 & 7) == 3 && !(word >> 24 & 1);
        bool is_atomic = (word >> 27 & 7) == 7 && !(word >> 24 & 1) && (word >> 21 & 1) && (word >> 10 & 3) == 0;
        bool is_signed = (word >> 27 & 7) == 7 && !(word >> 26 & 1) && (word >> 23 & 1);
        kinds[is_literal || is_atomic || is_signed || (word >> 22 & 1) ? LOADS : STORES]++;
    } else if ((group & 7) == 7 || group == 2) {
        kinds[SIMD]++;
    } else if ((group & 14) == 10) {
        kinds[BRANCHES]++;
    }
}

static void executed(unsigned thread, void *block) {
    const uint64_t *kinds = block;
    uint64_t *mine = counts[thread % THREADS];
    for (int kind = 0; kind < SYSCALLS; kind++)
        mine[kind] += kinds[kind];
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
    uint64_t *kinds = calloc(KINDS, sizeof *kinds);
    (void)id;
    if (kinds == NULL)
        abort();
    kinds[ALL] = qemu_plugin_tb_n_insns(tb);
    for (size_t i = 0; is_a64 && i < kinds[ALL]; i++)
        sort_a64(kinds, word_of(qemu_plugin_tb_get_insn(tb, i)));
    qemu_plugin_register_vcpu_tb_exec_cb(tb, executed, QEMU_PLUGIN_CB_NO_REGS, kinds);
}

static void called(qemu_plugin_id_t id, unsigned thread, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                   uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
    (void)id, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number == prctl_number && a1 == MARK)
        report();
    else
        counts[thread % THREADS][SYSCALLS]++;
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc,
                                                               char **argv) {
    is_a64 = !strcmp(info->target_name, "aarch64");
    prctl_number = is_a64 ? 167 : 157;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "out=", 4))
            out = fopen(argv[i] + 4, "w");
    if (out == NULL)
        return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
