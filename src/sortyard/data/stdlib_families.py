"""Which subject a module of the standard library belongs to."""

_MODULES: dict[str, str] = {
    "concurrency": """
        asyncio threading _threading_local multiprocessing concurrent queue sched selectors subprocess signal
        contextvars _pyio asyncore asynchat dummy_threading _dummy_thread
    """,
    "data formats": """
        json xml csv configparser tarfile zipfile gzip bz2 lzma plistlib pickle _compat_pickle pickletools shelve dbm
        sqlite3 tomllib wave aifc sunau chunk mimetypes xdrlib netrc struct copyreg _compression compression imghdr
        sndhdr uu zlib binhex
    """,
    "gui": "tkinter turtle turtledemo idlelib",
    "language": """
        ast tokenize token lib2to3 inspect dis typing importlib pkgutil pydoc code codeop compileall py_compile
        symtable keyword modulefinder runpy pyclbr opcode linecache tabnanny abc types dataclasses enum functools
        contextlib warnings annotationlib _ast_unparse rlcompleter zipimport pydoc_data __future__ _pyrepl weakref
        _weakrefset copy reprlib imp
    """,
    "networking": """
        http urllib smtplib imaplib nntplib ftplib poplib telnetlib socket socketserver ssl xmlrpc wsgiref cgi cgitb
        smtpd webbrowser ipaddress nturl2path
    """,
    "numeric": """
        _pydecimal decimal fractions statistics random numbers heapq bisect datetime _pydatetime calendar zoneinfo
        colorsys collections _collections_abc operator secrets hashlib hmac uuid _strptime graphlib
    """,
    "system": """
        os shutil pathlib tempfile platform sysconfig site ntpath posixpath genericpath glob fnmatch stat filecmp
        fileinput io ctypes curses pty tty getpass distutils venv ensurepip argparse optparse getopt cmd shlex
        _osx_support _aix_support pipes zipapp
    """,
    "testing": "unittest doctest pdb bdb trace traceback profile cProfile pstats timeit logging",
    "text": """
        email difflib re textwrap string stringprep codecs encodings locale _bootlocale gettext mailbox mailcap quopri
        base64 html _markupbase sre_compile sre_parse sre_constants pprint
    """,
}

FAMILIES: tuple[str, ...] = tuple(sorted(_MODULES))

_FAMILY = {module: family for family, modules in _MODULES.items() for module in modules.split()}


def family_of(module: str) -> str:
    """Return the family of a dotted module name, by its first part; "other" for test suites and the unlisted."""
    return "other" if is_test(module) else _FAMILY.get(module.split(".")[0], "other")


def is_test(module: str) -> bool:
    """Tell whether a module belongs to a test suite, by its name."""
    parts = module.split(".")
    return not {"test", "tests", "idle_test"}.isdisjoint(parts) or parts[-1].startswith("test_")
