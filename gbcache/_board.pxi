# _board.pxi - who loads which key: the flights of one cache. Each of these is alone with its store.
#
# The dict is looked at only there: who waits for another at the dict itself lets go of the store meanwhile (_alone.h).

cdef extern from "_alone.h":
    PyObject *gb_alone_item(PyObject *dict, PyObject *key)


cdef object flight_of(dict flights, key):
    """The flight of a key, or None. A reference of our own: a key's ``==`` lets others in, who may take it off."""
    cdef PyObject *found = gb_alone_item(<PyObject *>flights, <PyObject *>key)
    return None if is_miss(found) else owned(found)


cdef object board(dict flights, key, mine, over):
    """The flight of the key: the one that is there; `mine`, if there is none, or `over`."""
    found = flight_of(flights, key)
    if found is not None and found is not over:
        return found
    flights[key] = mine
    return mine


cdef object leave(dict flights, key, flight):
    """Takes a flight off the list, if it is still on it."""
    if flight_of(flights, key) is not flight:
        return
    found = flights.pop(key, None)
    if found is not None and found is not flight:  # the key's == let another thread in
        if flight_of(flights, key) is None:  # not setdefault, see writes.py
            flights[key] = found
