"""Prints, for each URL on stdin (a JSON list), the host that each parser here connects to.

The result is a JSON list of objects: the parser's name, and the host or null where it rejects
the URL. httpx and libcurl are left out where they are not installed.
"""
import ctypes, ctypes.util, json, sys
from urllib.parse import urlsplit

try:
    import httpx
except ImportError:
    httpx = None
try:
    curl = ctypes.CDLL(ctypes.util.find_library("curl") or "libcurl.so.4")
    curl.curl_url.restype = ctypes.c_void_p
    curl.curl_url_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    curl.curl_url_get.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_void_p), ctypes.c_uint]
    curl.curl_url_cleanup.argtypes = [ctypes.c_void_p]
    curl.curl_free.argtypes = [ctypes.c_void_p]
except OSError:
    curl = None
FULL, HOST, GUESS = 0, 5, 1 << 9


def by_curl(url):
    handle, part = curl.curl_url(), ctypes.c_void_p()
    try:
        if "\0" in url or curl.curl_url_set(handle, FULL, url.encode("utf-8", "surrogatepass"), GUESS):
            return None
        if curl.curl_url_get(handle, HOST, ctypes.byref(part), 0):
            return None
        host = ctypes.string_at(part.value).decode("utf-8", "replace")
        curl.curl_free(part)
        return host
    finally:
        curl.curl_url_cleanup(handle)


def hosts(url):
    out = {"urlsplit": lambda: urlsplit(url).hostname}
    if httpx:
        out["httpx"] = lambda: httpx.URL(url).raw_host.decode("ascii")
    if curl:
        out["libcurl"] = lambda: by_curl(url)
    for name, read in out.items():
        try:
            out[name] = read() or None
        except Exception:
            out[name] = None
    return out


for line in sys.stdin:
    print(json.dumps([hosts(u) for u in json.loads(line)]), flush=True)
