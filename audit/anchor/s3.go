package anchor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

// S3 stores every checkpoint in a bucket with object lock. No account can change or remove one
// before its time, including the one that writes them.
//
// The key of a checkpoint is PREFIX/ORIGIN/REST-SIZE. SIZE has 19 digits, and REST is
// 9223372036854775807 - SIZE. So the newest checkpoint is first in a listing.
type S3 struct {
	client         *s3.Client
	bucket, prefix string
	retain         time.Duration
	now            func() time.Time
}

const (
	// s3Deadline limits one request to the store, its retry included.
	s3Deadline = 10 * time.Second
	// defaultRetain is how long the store keeps each checkpoint.
	defaultRetain = 365
	// maxNote limits what is read from an anchor.
	maxNote = 64 << 10
)

// newS3 opens s3://BUCKET/PREFIX?endpoint=URL&region=REGION&retain-days=N. Credentials come from
// the AWS SDK's standard places.
func newS3(ctx context.Context, u *url.URL) (*S3, error) {
	a := &S3{bucket: u.Host, prefix: strings.Trim(u.Path, "/"), now: time.Now}
	if a.bucket == "" || u.User != nil || u.Fragment != "" || a.prefix != "" && !fs.ValidPath(a.prefix) {
		return nil, errors.New("an S3 anchor has the form s3://BUCKET/PREFIX?region=REGION; credentials come from the environment")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, errors.New("its query is not well formed")
	}
	days, endpoint := int64(defaultRetain), ""
	var options []func(*config.LoadOptions) error
	for name, values := range query {
		switch value := values[0]; name {
		case "endpoint":
			e, err := url.Parse(value)
			if err != nil || e.Host == "" || e.Scheme != "https" && e.Scheme != "http" || e.User != nil {
				return nil, fmt.Errorf("endpoint=%s is not a URL such as https://s3.example.com", value)
			}
			endpoint = value
		case "region":
			options = append(options, config.WithRegion(value))
		case "retain-days":
			if days, err = strconv.ParseInt(value, 10, 32); err != nil || days < 1 || days > 36500 {
				return nil, fmt.Errorf("retain-days=%s: set a number of days from 1 to 36500", value)
			}
		default:
			return nil, fmt.Errorf("unknown parameter %q; valid parameters: endpoint, region, retain-days", name)
		}
	}
	a.retain = time.Duration(days) * 24 * time.Hour
	options = append(options, config.WithHTTPClient(awshttp.NewBuildableClient().WithTimeout(s3Deadline)), config.WithRetryMaxAttempts(2))
	c, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("the AWS configuration: %w", err)
	}
	if c.Region == "" {
		return nil, errors.New("the region is not known: add ?region=REGION, or set AWS_REGION")
	}
	a.client = s3.NewFromConfig(c, func(o *s3.Options) {
		if endpoint != "" {
			o.BaseEndpoint, o.UsePathStyle = &endpoint, true
		}
	})
	return a, nil
}

func (a *S3) folder(origin string) (string, error) {
	if !fs.ValidPath(origin) || origin == "." {
		return "", fmt.Errorf("the origin %q is not a path", origin)
	}
	if a.prefix == "" {
		return origin + "/", nil
	}
	return a.prefix + "/" + origin + "/", nil
}

// Publish stores a signed checkpoint. A stored one is never replaced.
func (a *S3) Publish(ctx context.Context, origin string, note []byte) error {
	ctx, cancel := context.WithTimeout(ctx, s3Deadline)
	defer cancel()
	folder, err := a.folder(origin)
	if err != nil {
		return err
	}
	size, err := sizeOf(note)
	if err != nil {
		return err
	}
	key := fmt.Sprintf("%s%019d-%019d", folder, math.MaxInt64-size, size)
	until := a.now().Add(a.retain)
	_, err = a.client.PutObject(ctx, &s3.PutObjectInput{
		Bucket: &a.bucket, Key: &key, Body: bytes.NewReader(note), ContentType: aws.String("text/plain; charset=utf-8"), IfNoneMatch: aws.String("*"),
		ObjectLockMode: types.ObjectLockModeCompliance, ObjectLockRetainUntilDate: &until, ChecksumAlgorithm: types.ChecksumAlgorithmSha256,
	})
	var problem smithy.APIError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &problem) && (problem.ErrorCode() == "PreconditionFailed" || problem.ErrorCode() == "ConditionalRequestConflict"):
		have, err := a.get(ctx, key)
		if err == nil && !bytes.Equal(have, note) {
			err = fmt.Errorf("s3://%s/%s is another checkpoint of the same size", a.bucket, key)
		}
		return err
	}
	return a.failed("storing a checkpoint", err)
}

// Newest returns the newest checkpoint of an origin, or nil.
func (a *S3) Newest(ctx context.Context, origin string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s3Deadline)
	defer cancel()
	folder, err := a.folder(origin)
	if err != nil {
		return nil, err
	}
	list, err := a.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &a.bucket, Prefix: &folder, MaxKeys: aws.Int32(1)})
	if err != nil {
		return nil, a.failed("listing checkpoints", err)
	}
	if len(list.Contents) == 0 || list.Contents[0].Key == nil {
		return nil, nil
	}
	return a.get(ctx, *list.Contents[0].Key)
}

func (a *S3) get(ctx context.Context, key string) ([]byte, error) {
	object, err := a.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &a.bucket, Key: &key})
	if err != nil {
		return nil, a.failed("reading a checkpoint", err)
	}
	defer object.Body.Close()
	note, err := io.ReadAll(io.LimitReader(object.Body, maxNote+1))
	if err != nil {
		return nil, a.failed("reading a checkpoint", err)
	}
	if len(note) > maxNote {
		return nil, fmt.Errorf("s3://%s/%s has more than %d bytes, so it is not a checkpoint", a.bucket, key, maxNote)
	}
	return note, nil
}

// failed shortens an error of the SDK, whose text has addresses and ids of requests.
func (a *S3) failed(doing string, err error) error {
	var problem smithy.APIError
	if errors.As(err, &problem) {
		return fmt.Errorf("%s in s3://%s: %s: %s", doing, a.bucket, problem.ErrorCode(), problem.ErrorMessage())
	}
	return fmt.Errorf("%s in s3://%s: %w", doing, a.bucket, err)
}
