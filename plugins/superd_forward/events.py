"""What epoll(7) tells of a socket, by what it means here."""

import select

USUAL = select.EPOLLIN | select.EPOLLOUT  # there is input, and nothing else to be seen to
URGENT = select.EPOLLPRI  # a byte out of band, where reading stops although there may be more
BROKEN = select.EPOLLERR
ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
INPUT = select.EPOLLIN | ENDED
