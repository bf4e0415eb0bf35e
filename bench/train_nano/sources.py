"""The openly licensed sources of nano's corpus: which package, which files of it, which reader."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One Debian package whose text goes into the corpus.

    Attributes
    ----------
    package : str
        Binary package in Debian's ``main`` archive (bookworm).
    reader : str
        Key of `readers.READERS`: the format of the files.
    include : tuple of str
        Glob patterns below the unpacked package.
    licence : str
        Licence of the text, as the package's copyright file states it.
    exclude : tuple of str
        A path that contains one of these parts is skipped (translations, listings, indexes).
    """

    package: str
    reader: str
    include: tuple[str, ...]
    licence: str
    exclude: tuple[str, ...] = ()


_DOC = "usr/share/doc/"
_LISTINGS = ("/_modules/", "/_sources/", "/_static/", "genindex", "py-modindex", "/search.html")
_VIGNETTES = ("usr/lib/R/site-library/*/doc/*.Rmd",)


def _sphinx(package: str, licence: str, folder: str = "", exclude: tuple[str, ...] = ()) -> Source:
    """A package of pages written by Sphinx (or laid out alike), all of them English."""
    include = (f"{_DOC}{folder or package}/**/*.html",)
    return Source(package, "html", include, licence, _LISTINGS + exclude)


SOURCES = (
    # Dictionaries and other general English.
    Source("dict-gcide", "gcide", ("usr/share/dictd/*.dict.dz",), "GPL-2+"),
    Source("wordnet-base", "wordnet", ("usr/share/wordnet/data.*",), "WordNet 3.0 licence"),
    Source(
        "dict-foldoc",
        "dictionary",
        ("usr/share/dictd/*.dict.dz",),
        "GFDL-1.1+, no invariant sections",
    ),
    Source("dict-jargon", "dictionary", ("usr/share/dictd/*.dict.dz",), "public domain"),
    Source("dict-devil", "dictionary", ("usr/share/dictd/*.dict.dz",), "public domain"),
    Source(
        "r-cran-janeaustenr",
        "r_strings",
        ("usr/lib/R/site-library/janeaustenr/data/Rdata.rdb",),
        "public domain (the novels), MIT (the package)",
    ),
    # Biology, medicine and statistics.
    Source(
        "r-bioc-go.db",
        "gene_ontology",
        ("usr/lib/R/site-library/GO.db/extdata/*.sqlite",),
        "Artistic-2.0 (the package), CC-BY-4.0 (Gene Ontology)",
    ),
    _sphinx("gnumed-doc", "GPL-2+", folder="gnumed/user-manual"),
    _sphinx("python-nibabel-doc", "MIT"),
    _sphinx("python-nipype-doc", "Apache-2.0", folder="python3-nipype"),
    _sphinx("python-scipy-doc", "BSD-3-Clause"),
    _sphinx("python-sklearn-doc", "BSD-3-Clause"),
    _sphinx("python-statsmodels-doc", "BSD-3-Clause", exclude=("/dev/generated/",)),
    _sphinx("python-astropy-doc", "BSD-3-Clause"),
    _sphinx("python-skimage-doc", "BSD-3-Clause"),
    _sphinx("python-sympy-doc", "BSD-3-Clause"),
    Source("r-cran-brms", "markdown", _VIGNETTES, "GPL-3+"),
    Source("r-cran-rstanarm", "markdown", _VIGNETTES, "GPL-3+"),
    Source("r-cran-emmeans", "markdown", _VIGNETTES, "GPL-2"),
    Source("r-cran-loo", "markdown", _VIGNETTES, "GPL-3+"),
    Source("r-cran-effectsize", "markdown", _VIGNETTES, "GPL-3"),
    Source("r-cran-epir", "markdown", _VIGNETTES, "GPL-2+"),
    Source("r-bioc-biomart", "markdown", _VIGNETTES, "Artistic-2.0"),
    Source("r-doc-html", "html", ("usr/share/R/doc/**/*.html",), "GPL-2"),
    # Computing.
    _sphinx("python3.11-doc", "PSF-2.0", folder="python3.11/html"),
    _sphinx("python-django-doc", "BSD-3-Clause"),
    _sphinx("linux-doc-6.1", "GPL-2", exclude=("/translations/",)),
    _sphinx("postgresql-doc-15", "PostgreSQL"),
    _sphinx("sqlite3-doc", "public domain", folder="sqlite3"),
    _sphinx("rust-doc", "MIT or Apache-2.0", exclude=("/src/", "/core/", "/core_arch/", "arch/")),
    _sphinx("git-doc", "GPL-2", exclude=("/RelNotes/",)),
    _sphinx("cmake-doc", "BSD-3-Clause", folder="cmake-data"),
    _sphinx("zsh-doc", "MIT-like (zsh)", folder="zsh-common"),
    _sphinx("bind9-doc", "MPL-2.0"),
    _sphinx("postfix-doc", "IPL-1.0 or EPL-2.0", folder="postfix"),
    _sphinx("exim4-doc-html", "GPL-2+"),
    _sphinx("octave-doc", "GPL-3+", folder="octave"),
    _sphinx("maxima-doc", "GPL-2+"),
    _sphinx("grass-doc", "GPL-2+"),
    Source(
        "apache2-doc", "html", (f"{_DOC}apache2-doc/manual/en/**/*.html",), "Apache-2.0", _LISTINGS
    ),
    Source("perl-doc", "pod", ("usr/share/perl/**/*.pod",), "Artistic or GPL-1+"),
    Source("manpages", "roff", ("usr/share/man/man*/*.gz",), "various free (Linux man-pages)"),
    Source("manpages-dev", "roff", ("usr/share/man/man*/*.gz",), "various free (Linux man-pages)"),
    # Guides for people.
    Source(
        "debian-handbook",
        "html",
        (f"{_DOC}debian-handbook/html/en-US/*.html",),
        "GPL-2+ or CC-BY-SA-3.0",
    ),
    Source("harden-doc", "html", (f"{_DOC}harden-doc/html/en-US/*.html",), "GPL-2+"),
    Source("debian-policy", "html", (f"{_DOC}debian-policy/policy.html/*.html",), "GPL-2+"),
    Source("debian-reference-en", "html", ("usr/share/debian-reference/*.en.html",), "GPL-2+"),
    Source("developers-reference", "html", ("usr/share/developers-reference/*.html",), "GPL-2+"),
    Source("debian-faq", "html", (f"{_DOC}debian/FAQ/*.en.html",), "permissive, notice kept"),
    Source("debian-history", "html", (f"{_DOC}debian-history/docs/*.en.html",), "GPL-2+"),
    _sphinx("debian-kernel-handbook", "GPL-2+"),
    Source("maint-guide", "html", (f"{_DOC}maint-guide/html/*.en.html",), "GPL-2+"),
    _sphinx("aptitude-doc-en", "GPL-2+", folder="aptitude"),
    Source("gnome-user-docs", "html", ("usr/share/help/C/**/*.page",), "CC-BY-SA-3.0"),
    Source(
        "gimp-help-en",
        "html",
        ("usr/share/gimp/2.0/help/en/*.html",),
        "GFDL-1.2+, no invariant sections",
    ),
    Source(
        "libreoffice-help-en-us",
        "html",
        ("usr/share/libreoffice/help/en-US/text/**/*.html",),
        "MPL-2.0",
    ),
)
