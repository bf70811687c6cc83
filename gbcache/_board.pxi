# _board.pxi - who loads which key: the flights of one cache. Each of these is alone with its store.
#
#   flights   hash -> the last flight of that hash -> its `next` -> ... -> None
#
# By the hash alone, a plain int: no key's == runs in the dict, in which another would find a list that is not whole.
# Who looks for a key compares on the way along the list, and begins anew where others came in meanwhile. A flight that
# is taken out keeps its `next`: who stands at it finds the rest.

cdef extern from "_alone.h":
    PyObject *gb_alone_item(PyObject *dict, PyObject *key)


cdef object last_of(dict flights, place):
    """The last flight of a hash, or None. A reference of our own: a key's ``==`` lets others in, who may take it off."""
    cdef PyObject *found = gb_alone_item(<PyObject *>flights, <PyObject *>place)
    return None if is_miss(found) else owned(found)


cdef object flight_of(flight, key, over):
    """The flight of the key, from `flight` on, `over` excepted; or None."""
    while flight is not None:
        its = flight.key
        if flight is not over and (its is key or its == key) and flight.place is not None:
            return flight  # not one that was taken out in the midst of it, whose key is gone
        flight = flight.next
    return None


cdef object board(dict flights, key, mine, over):
    """The flight of the key: the one that is there; `mine`, if there is none, or `over`, which is void then."""
    cdef object place = hash(key)  # one object, which what follows need not make
    while True:
        head = last_of(flights, place)
        found = flight_of(head, key, over)
        if found is not None:
            return found
        if head is None or last_of(flights, place) is head:
            break
    mine.key, mine.next = key, head
    flights[place] = mine
    mine.place = place
    if over is not None:
        over[0] = 1
        leave(flights, over)
    return mine


cdef object leave(dict flights, flight):
    """Takes a flight off the list, if it is on it. Asks for no memory."""
    place = flight.place
    if place is None:
        return
    at = last_of(flights, place)
    if at is not flight:
        while at is not None and at.next is not flight:
            at = at.next
        if at is not None:
            at.next = flight.next
    elif flight.next is None:
        del flights[place]
    else:
        flights[place] = flight.next
    flight.place = flight.key = None
