"""Credentials are masked in every spelling; what only looks like one stays readable."""

import logging

import pytest

from rayreid.errors import UserError, one_line
from rayreid.masking import holds_credentials, masked, masked_arguments, masked_values

SECRET = "hunter2-S3cr3t"


@pytest.mark.parametrize(
    "text",
    [
        "http://me:{}@mlflow:5000",
        "https://me:{}@mlflow.example.org/path?a=b",
        "https://:{}@mlflow",
        "https://{}-which-is-a-token@mlflow",
        "postgresql://me:{}@db:5432/mlflow",
        "postgresql+psycopg2://me:p@ss@{}@db/mlflow?sslmode=require",
        "postgresql://db/mlflow?user=me&password={}",
        "postgresql://me@db/mlflow?sslpassword={}&sslcert=client.crt",
        "host=db user=me password={} dbname=mlflow",
        "host=db user=me password = '{}' dbname=mlflow",
        "mysql+pymysql://me:{}@db/mlflow?charset=utf8",
        "mysql://db/mlflow?passwd={}",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3DODBC%3BUID%3Dme%3BPWD%3D{}%3B",
        "DRIVER=ODBC;UID=me;PWD={};",
        "s3://key:{}@bucket/pool",
        "s3://bucket/pool?access_key={}&secret_key=x",
        "s3://bucket/pool?secret_key={}",
        "s3://bucket/pool?region=eu&session_token={}",
        "https://bucket.s3.amazonaws.com/a?X-Amz-Credential={}&X-Amz-Date=1",
        "https://bucket.s3.amazonaws.com/a?X-Amz-Signature={}",
        "https://bucket.s3.amazonaws.com/a?X-Amz-Security-Token={}",
        "https://account.blob.core.windows.net/c/b?sv=2024&sig={}&se=2030",
        "DefaultEndpointsProtocol=https;AccountName=a;AccountKey={};EndpointSuffix=core",
        "abfss://c@account.dfs.core.windows.net/p?sas_token={}",
        "https://storage.googleapis.com/b/o?GoogleAccessId={}&Expires=1",
        "https://storage.googleapis.com/b/o?Signature={}",
        "gs://bucket/pool?access_token={}",
        "Authorization: Bearer {}",
        "{{'Authorization': 'Basic {}'}}",
        "401 for bearer {}",
        '{{"password": "{}", "user": "me"}}',
        "{{'aws_secret_access_key': '{}'}}",
        "MLFLOW_TRACKING_TOKEN={} rayreid run",
        "RAY_AUTH_TOKEN={}",
        "AWS_SECRET_ACCESS_KEY={}",
        "(http://me:{}@mlflow): refused",
        'could not open "http://me:{}@mlflow"',
    ],
)
def test_a_credential_is_masked(text):
    written = text.format(SECRET)
    assert SECRET not in masked(written) and "***" in masked(written)
    assert masked(masked(written)) == masked(written)
    assert holds_credentials(written)


@pytest.mark.parametrize("token", ["AKIAIOSFODNN7EXAMPLE", "ghp_" + "a1B2" * 9, "hf_" + "abCD" * 8, "dapi" + "0f" * 16])
def test_a_token_is_known_by_its_form(token):
    assert masked(f"refused for {token}!") == "refused for ***!"


def test_the_rest_of_a_uri_stays_readable():
    assert (
        masked("postgresql://me:secret@db:5432/mlflow?sslmode=require")
        == "postgresql://***@db:5432/mlflow?sslmode=require"
    )
    assert masked("s3://b/p?secret_key=abc&region=eu") == "s3://b/p?secret_key=***&region=eu"


@pytest.mark.parametrize(
    "text",
    [
        "http://mlflow:5000/path",
        "http://127.0.0.1:5000",
        "sqlite:////data/outputs/mlflow.db",
        "s3://bucket:9000/pool@2x/a.jpg",
        "postgresql://me@db/mlflow",
        "abfss://a-container-of-some-length@account.dfs.core.windows.net/p",
        "cls_token: shape (1, 1, 384), mask_token=zeros, 196 tokens",
        "a token (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN or ~/.ray/auth_token)",
        "pretrain.epochs=3, select.strategy=cfs, key.path=value",
        "me@example.org: see https://example.org/a@b",
        "a basic authentication, a bearer token",
    ],
)
def test_what_is_no_credential_stays(text):
    assert masked(text) == text and not holds_credentials(text)


def test_the_value_of_a_well_known_variable_is_masked_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    monkeypatch.setenv("PGPASSWORD", "short")
    assert masked(f"the server said: {SECRET} is wrong, in short") == "the server said: *** is wrong, in short"


def test_values_are_masked_at_any_depth_and_keys_stay():
    found = masked_values({"uri": "http://a:b@c", "list": ["s3://k:v@b", 3, None], "of": {"x": 1.5}})
    assert found == {"uri": "http://***@c", "list": ["s3://***@b", 3, None], "of": {"x": 1.5}}


def test_errors_are_masked():
    assert str(UserError("MLflow at http://me:pw@host is away")) == "MLflow at http://***@host is away"
    assert one_line(OSError("http://me:pw@host\nis away")) == "http://***@host"


def test_records_of_the_logger_are_masked(caplog):
    logging.getLogger("rayreid").warning("%s is away", "http://me:pw@host")
    assert caplog.messages == ["http://***@host is away"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["pool.options.password=my secret pw", "seed=1"], ["pool.options.password=***", "seed=1"]),
        (["pool={options: {password: hunter2, part: pool}}"], ["pool={options: {password: ***, part: pool}}"]),
        (["--token", "hunter2", "run"], ["--token", "***", "run"]),
        (["pool.root=s3://AK:se'cr@bucket/pool"], ["pool.root=s3://***@bucket/pool"]),
        (["run", "mine.yaml", "select.fraction=0.5"], ["run", "mine.yaml", "select.fraction=0.5"]),
    ],
)
def test_arguments_of_a_command_are_masked_before_they_are_joined(arguments, told):
    assert masked_arguments(arguments) == told
