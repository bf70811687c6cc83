/* kill.h - a store before which the process dies. */
#ifndef KILL_H
#define KILL_H
#include "mend.h"
extern bool kill_alloc_fails; /* there is no block in the arena, whoever asks */
void kill_use(struct gb_store *s, gb_ref ref, uint64_t now);
#endif
