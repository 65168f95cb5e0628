"""What is secret in a setting is found in all its forms, and hidden; addresses without secrets stay as they are."""

import pytest

from orchestration.secret_text import find_secret, hide, hide_in_patch

SECRET = "hunter2secret"


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me:{}@db/mlflow",
        "postgresql://me:a#{}@db/mlflow",
        "postgresql+psycopg2://me:a/{}@db:5432/mlflow",
        "postgresql://me@db/mlflow?password={}",
        "postgresql://db/mlflow?user=me&sslpassword={}",
        "postgresql://db/mlflow?PASSWORD={}",
        "mysql+pymysql://me:{}@db/mlflow",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3D%7BODBC%7D%3BUID%3Dsa%3BPWD%3D{}",
        "jdbc:sqlserver://db;user=sa;password={}",
        "https://{}@mlflow.example.org/x",
        "https://me:{}@mlflow.example.org",
        "https://:{}@mlflow.example.org",
        "https://mlflow.example.org?access_token={}",
        "https://mlflow.example.org/#token={}",
        "https://mlflow.example.org/?pass%77ord={}",
        "https://mlflow.example.org/?a=b%26api_key%3D{}",
        "https://store.example.org/c?sv=1&sig={}",
        "s3://AKIAIOSFODNN7EXAMPLE:{}@bucket/x",
        "s3://bucket/x?aws_secret_access_key={}",
        "s3://bucket/x?X-Amz-Security-Token={}",
        "ray://{}@head:10001",
        "redis://:{}@host:6379",
        "gs://bucket?credentials={}",
    ],
)
def test_a_secret_in_an_address_is_found_and_hidden(text: str):
    address = text.format(SECRET)
    assert find_secret(address) is not None
    assert SECRET not in find_secret(address)
    assert SECRET not in hide(f"error: {address}: no answer")
    assert hide(f"error: {address}: no answer").startswith("error: ")


@pytest.mark.parametrize(
    "text",
    [
        "host=db password=hunter2",
        "DefaultEndpointsProtocol=https;AccountKey=abc==",
        "hf_" + "a" * 34,
    ],
)
def test_a_secret_outside_of_addresses_is_found_and_hidden(text: str):
    assert find_secret(text) is not None
    assert "***" in hide(text)
    assert find_secret(hide(text).replace("***", "")) is None


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me@db/mlflow",
        "postgresql://me@db/mlflow?sslmode=verify-full&sslrootcert=/x.pem&passfile=/x/.pgpass",
        "http://127.0.0.1:5000",
        "http://mlflow:5000/#/experiments/1@x",
        "http://host/?keyword=x&monkey=3&tokenizer=a",
        "sqlite:////runs/mlflow.db",
        "databricks://profile",
        "ray://head:10001",
        "10.0.0.1:6379",
        "auto",
        "imagenet",
        "/data/token/a=b",
        "/data/key=1/x",
        "me@home/runs",
        "not of the form key=value; write for example --set qam.k_top=10",
    ],
)
def test_text_without_secrets_is_left_as_it_is(text: str):
    assert hide(text) == text
    assert "key=value" in text or find_secret(text) is None


def test_a_patch_keeps_all_but_the_values_of_secrets():
    patch = "+token: abc\n+  DB_PASSWORD=abc\n-key = read_key()\n+name: qam\n"
    assert (
        hide_in_patch(patch) == "+token: ***\n+  DB_PASSWORD=***\n-key = read_key()\n+name: qam\n"
    )


def test_a_secret_that_is_part_of_its_own_name_hides_nothing_else():
    assert (
        hide("postgresql://host/db?token=t&sslmode=require")
        == "postgresql://host/db?token=***&sslmode=require"
    )


def test_notify_targets_are_hidden_in_commands_and_patches():
    command = "boxseg sweep a.yaml --set notify.url=https://ntfy.sh/{} --set 'notify={{url: https://x/{}}}' --new"
    hidden = "boxseg sweep a.yaml --set notify.url=*** --set 'notify=***' --new"
    assert hide(command.format(SECRET, SECRET)) == hidden
    assert hide(f"notify.url=https://ntfy.sh/{SECRET}") == "notify.url=***"
    assert (
        hide_in_patch(f"+notify:\n+  url: https://ntfy.sh/{SECRET}\n") == "+notify:\n+  url: ***\n"
    )
    assert SECRET not in hide(f"no answer from https://hooks.slack.com/services/T0/B0/{SECRET}")


@pytest.mark.parametrize(
    "text", ["notify.url=${MY_URL}", "https://example.org/x?token=${MY_TOKEN}&user=1"]
)
def test_the_name_of_a_variable_gives_nothing_away(text: str):
    assert find_secret(text) is None
    assert hide(text) == text
    assert find_secret("https://example.org/x?token=${MY_TOKEN}abc") is not None
