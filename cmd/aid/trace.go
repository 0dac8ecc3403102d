package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// tracing is configured only with the standard variables. Spans are sent to
// OTEL_EXPORTER_OTLP_ENDPOINT (or …_TRACES_ENDPOINT), if that is set and OTEL_SDK_DISABLED
// is not true. The exporter and the sampler read the other OTEL_* variables. If tracing is
// off, tp is nil: there are no spans, and traceparent is still forwarded. stop sends the
// remaining spans.
func tracing(ctx context.Context, service string) (tp *sdktrace.TracerProvider, stop func(), err error) {
	on := os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
	if !on || os.Getenv("OTEL_SDK_DISABLED") == "true" || os.Getenv("OTEL_TRACES_EXPORTER") == "none" {
		return nil, func() {}, nil
	}
	exporter, err := otlptracegrpc.New(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("OTEL_EXPORTER_OTLP_ENDPOINT: %w", err)
	}
	// OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME override these attributes.
	about, err := resource.New(ctx, resource.WithAttributes(
		attribute.String("service.name", "aid-"+service), attribute.String("service.version", version()),
	), resource.WithFromEnv())
	if err != nil {
		return nil, nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	tp = sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about))
	return tp, func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		_ = tp.Shutdown(last)
	}, nil
}
