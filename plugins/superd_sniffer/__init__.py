"""sniffer: records connection attempts on any ports, their first bytes, and bans repeated ones.

Options: capture, banner, tarpit, names, output, pcap, file-size, files, ban.
Example: plugin = "sniffer", listen = "tcp://*:1-1024", options = { capture = {} }
See also: nmap(1), services(5), pcap-savefile(5)
"""

from superd.plugin import Service, hookimpl
from superd_sniffer.service import Sniffer


@hookimpl
def superd_services() -> list[type[Service]]:
    return [Sniffer]
