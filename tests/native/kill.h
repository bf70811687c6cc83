/* kill.h - a store before which the process dies. */
#ifndef KILL_H
#define KILL_H
#include "mend.h"
void kill_use(struct gb_store *s, gb_ref ref, uint64_t now);
#endif
