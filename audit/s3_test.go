package audit_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/ai-identity/ai-identity/audit/anchor"
	"github.com/ai-identity/ai-identity/audit/evidence"
)

// Checkpoints in a bucket with object lock: the newest is found, none is replaced, and the
// account that wrote one cannot remove it.
func TestS3(t *testing.T) {
	gateway := tool(t, "versitygw")
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "aidtest", "AWS_SECRET_ACCESS_KEY": "aid-test-secret", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
		"AWS_EC2_METADATA_DISABLED": "true", "AWS_REGION": "",
	} {
		t.Setenv(name, value)
	}
	dir := t.TempDir()
	for _, name := range []string{"data", "sidecar", "versions"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	address := freePort(t)
	cmd := exec.Command(gateway, "--port", address, "--access", "aidtest", "--secret", "aid-test-secret", "--region", "eu-central-1", "--quiet",
		"posix", "--sidecar", filepath.Join(dir, "sidecar"), "--versioning-dir", filepath.Join(dir, "versions"), filepath.Join(dir, "data"))
	stop := program(t, address, cmd)
	ctx := t.Context()
	c, err := config.LoadDefaultConfig(ctx, config.WithRegion("eu-central-1"))
	if err != nil {
		t.Fatal(err)
	}
	endpoint := "http://" + address
	client := s3.NewFromConfig(c, func(o *s3.Options) { o.BaseEndpoint, o.UsePathStyle = &endpoint, true })
	for bucket, lock := range map[string]bool{"locked": true, "open": false} {
		if _, err := client.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String(bucket), ObjectLockEnabledForBucket: &lock}); err != nil {
			t.Fatal(err)
		}
	}

	signers, _ := signingKeys(t)
	origin := evidence.DirectoryOrigin(logName)
	note := func(size int64, second int64) []byte {
		n, err := evidence.Sign(ctx, evidence.Checkpoint{Origin: origin, Size: size, Time: time.Unix(second, 0)}, signers...)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	a, err := anchor.Open(ctx, "s3://locked/aid?region=eu-central-1&retain-days=1&endpoint="+endpoint)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := a.Newest(ctx, origin); got != nil || err != nil {
		t.Errorf("of an empty bucket: %s %v", got, err)
	}
	stored := map[int64][]byte{9: note(9, 1), 10: note(10, 2), 1000: note(1000, 3)}
	for _, size := range []int64{9, 1000, 10, 1000} { // also an older one later, and one twice
		if err := a.Publish(ctx, origin, stored[size]); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := a.Newest(ctx, origin); err != nil || !bytes.Equal(got, stored[1000]) {
		t.Errorf("the newest is %s %v", got, err)
	}
	if got, err := a.Newest(ctx, evidence.OrgOrigin(logName, "org_1", 1)); got != nil || err != nil {
		t.Errorf("of another origin: %s %v", got, err)
	}
	if err := a.Publish(ctx, origin, note(1000, 4)); err == nil || !strings.Contains(err.Error(), "another checkpoint of the same size") {
		t.Errorf("a second checkpoint of a size: %v", err)
	}
	list, err := client.ListObjectVersions(ctx, &s3.ListObjectVersionsInput{Bucket: aws.String("locked")})
	if err != nil || len(list.Versions) != 3 {
		t.Fatalf("%+v %v", list, err)
	}
	for _, v := range list.Versions {
		if _, err := client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: aws.String("locked"), Key: v.Key, VersionId: v.VersionId}); err == nil {
			t.Errorf("%s was removed", *v.Key)
		}
	}

	// What is wrong is named, without the credentials.
	for uri, want := range map[string]string{
		"s3://open/?region=eu-central-1&endpoint=" + endpoint:    "s3://open",
		"s3://missing/?region=eu-central-1&endpoint=" + endpoint: "NoSuchBucket",
	} {
		a, err := anchor.Open(ctx, uri)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Publish(ctx, origin, stored[9]); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "aid-test-secret") {
			t.Errorf("%s: %v", uri, err)
		}
	}
	stop()
	if err := a.Publish(ctx, origin, note(1001, 5)); err == nil {
		t.Error("the store is away, and a checkpoint is published")
	}
	if _, err := a.Newest(ctx, origin); err == nil {
		t.Error("the store is away, and has no newest checkpoint")
	}
	for _, uri := range []string{
		"", "s3", "s3:", "s3:///x?region=r", "s3://b", "s3://k:s@b/?region=r", "s3://b/../x?region=r", "s3://b/?region=r&retain-days=0", "s3://b/?region=r&retain-days=x",
		"s3://b/?region=r&lock=off", "s3://b/?region=r&endpoint=h", "ftp://b", "file:", "file:" + filepath.Join(dir, "none"),
	} {
		if _, err := anchor.Open(ctx, uri); err == nil {
			t.Errorf("%q is accepted", uri)
		}
	}
}
