/* image.h - a live file's superblock: what state it was left in, and whether that is to be believed.
 *
 * WHAT      A live file is an image mapped shared. Its state says who may believe it: CLOSED, by anybody, if
 *           its head's sum is right (all else was on disk before it said so); OPEN, by the same run of the same
 *           machine, after mending (pages are in that kernel's memory, whichever of them reached the disk);
 *           LOADING, by nobody.
 *
 * PICTURE   (new) -> LOADING -> OPEN -> CLOSED -> OPEN -> ... kill -> OPEN: mend | other boot: the checkpoint
 *
 * INVARIANT 1 the image's length is within the file's, of one that was killed too, and no less than the smallest.
 *           2 of a clean one: roots lie in the arena, which ends where the ring begins; the table has a size it can have.
 *           3 magic, version and layout are this release's.
 *           4 the file was filled, and if not closed is of this run of the machine, and no copy of another.
 *           5 of a clean one: the head's sum is right.
 *           CLOSED is written after everything else is on disk, OPEN is on disk before anything else changes:
 *           that is the binding's duty, which knows disks.
 *
 * COST      a sum over the head's 9 KiB.
 *
 * NOT HERE  files, locks, boot ids' origin.
 */
#ifndef GB_IMAGE_H
#define GB_IMAGE_H

#include "mend.h"
#include "snap.h"

enum gb_image_state { GB_IMAGE_PRIVATE, GB_IMAGE_LOADING, GB_IMAGE_OPEN, GB_IMAGE_CLOSED };
enum gb_image_verdict { GB_IMAGE_CLEAN, GB_IMAGE_KILLED, GB_IMAGE_LOST };

/* Any bytes may lie in the mapping. LOST: the fault says why. */
enum gb_image_verdict gb_image_judge(const void *base, uint64_t mapped, const uint64_t boot[2], uint64_t file_id,
                                     struct gb_fault *f);
/* The handle works on a live file from here on, in this state. */
void gb_image_state(struct gb_store *s, enum gb_image_state state, const uint64_t boot[2], uint64_t file_id,
                    uint64_t owner);
/* The head's sum, and CLOSED. */
void gb_image_seal(struct gb_store *s);

#endif
