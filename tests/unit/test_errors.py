import obstore.exceptions
import pytest

from holdfast import errors
from holdfast.errors import EXIT_CODES, HTTP_STATUS, DamageError, HoldfastError, exit_code
from holdfast.model.urls import BucketUrl
from holdfast.storage.backends import open_bucket
from holdfast.storage.backends.objects import ObjectBucket


def _tree(cls):
    yield cls
    for child in cls.__subclasses__():
        yield from _tree(child)


def _own():
    return {cls for cls in _tree(HoldfastError) if cls.__module__ == "holdfast.errors"}


LEAVES = sorted((cls for cls in _own() if not set(cls.__subclasses__()) & _own()), key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", LEAVES)
def test_every_leaf_has_an_exit_code_and_a_status(cls):
    assert cls in EXIT_CODES
    assert cls in HTTP_STATUS


def test_the_tables_name_nothing_else():
    assert set(EXIT_CODES) <= _own()
    assert set(EXIT_CODES) == set(HTTP_STATUS)


def test_the_tree_in_the_docstring_is_the_tree():
    assert errors.__doc__ is not None
    drawn = {
        line.split()[-1] if "──" not in line else line.partition("── ")[2].split()[0]
        for line in errors.__doc__.splitlines()
        if "──" in line
    }
    assert drawn == {cls.__name__ for cls in _own()} - {"HoldfastError"}


def test_codes_are_those_that_scripts_rely_on():
    assert exit_code(errors.UsageError("")) == 2
    assert exit_code(errors.ObjectNotFound("")) == 4
    assert exit_code(DamageError("")) == 5
    assert exit_code(errors.Interrupted("")) == 130
    assert errors.INCOMPLETE == 3
    assert errors.INCOMPLETE not in EXIT_CODES.values()


def test_an_error_without_a_code_of_its_own_takes_its_ancestors():
    class Rotten(DamageError):
        pass

    assert exit_code(Rotten("")) == 5
    assert exit_code(errors.BucketError("")) == 1


def test_what_may_be_tried_again_says_so():
    retryable = {"BusyError", "EngineUnavailable", "ProcessLost", "Unavailable"}
    assert {cls.__name__ for cls in _own() if cls.retryable} == retryable


EXPECTED = {
    "NotFoundError": errors.ObjectNotFound,
    "AlreadyExistsError": errors.AlreadyExists,
    "PreconditionError": errors.AlreadyExists,
    "PermissionDeniedError": errors.AccessDenied,
    "UnauthenticatedError": errors.AccessDenied,
}
THIRD_PARTY = sorted(name for name in vars(obstore.exceptions) if name.endswith("Error"))


@pytest.mark.parametrize("name", THIRD_PARTY)
def test_every_error_of_the_object_store_client_is_translated(monkeypatch, name):
    foreign = getattr(obstore.exceptions, name)

    def fail(*_args, **_kwargs):
        raise foreign("https://host/key?X-Amz-Signature=secret - it broke: <?xml><Token>secret</Token>")

    for function in ("put", "get", "get_range", "list_with_delimiter"):
        monkeypatch.setattr(f"holdfast.storage.backends.objects.obstore.{function}", fail)
    bucket = open_bucket(BucketUrl.parse("memory://translation"))
    assert isinstance(bucket, ObjectBucket)
    operations = [
        lambda: bucket.put("k", b""),
        lambda: bucket.create("k", b""),
        lambda: bucket.get("k", limit=1),
        lambda: bucket.get_range("k", 0, 1),
    ]

    for operation in operations:
        with pytest.raises(HoldfastError) as caught:
            operation()
        assert type(caught.value) is EXPECTED.get(name, errors.Unavailable)
        assert isinstance(caught.value.__cause__, foreign)
        assert "secret" not in str(caught.value)


def test_the_client_has_no_error_outside_its_base():
    for name in THIRD_PARTY:
        assert issubclass(getattr(obstore.exceptions, name), obstore.exceptions.BaseError)
