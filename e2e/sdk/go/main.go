// Command sdk drives the gateway with the official Go clients of OpenAI and Anthropic. Only
// their base URL and key are set. TestSDKs (e2e/sdk_test.go) starts everything and runs it.
//
// It is a module of its own, so that the gateway's go.mod has none of these clients.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/anthropics/anthropic-sdk-go"
	anthropicoption "github.com/anthropics/anthropic-sdk-go/option"
	"github.com/openai/openai-go/v3"
	openaioption "github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/shared"
)

const (
	text     = "Hello! How can I help you today?"
	question = "what is the weather in Lisbon"
	result   = "It is 21 degrees in Lisbon."
)

var (
	gateway    = os.Getenv("AID_GATEWAY")
	parameters = map[string]any{"type": "object", "properties": map[string]any{"city": map[string]any{"type": "string"}}, "required": []string{"city"}}
)

func main() {
	ctx := context.Background()
	failed := false
	check := func(name string, f func() error) {
		if err := f(); err != nil {
			failed = true
			fmt.Printf("FAIL %s: %v\n", name, err)
		}
	}
	for _, model := range strings.Split(os.Getenv("AID_CHAT_MODELS"), ",") {
		check("openai whole "+model, func() error { return openaiWhole(ctx, model) })
		check("openai stream "+model, func() error { return openaiStream(ctx, model) })
		check("openai tools "+model, func() error { return openaiTools(ctx, model) })
	}
	check("openai models", func() error { return openaiModels(ctx) })
	check("anthropic whole", func() error { return anthropicWhole(ctx) })
	check("anthropic stream", func() error { return anthropicStream(ctx) })
	check("anthropic tools", func() error { return anthropicTools(ctx) })
	check("anthropic models", func() error { return anthropicModels(ctx) })
	// The clients repeat a request twice unless the response forbids it. An unknown key
	// is rejected at once.
	for _, k := range []string{"aid_sk_not_a_key", os.Getenv("AID_REVOKED_KEY")} {
		check("openai 401", func() error { return openaiRejected(ctx, k) })
		check("anthropic 401", func() error { return anthropicRejected(ctx, k) })
	}
	if failed {
		os.Exit(1)
	}
	fmt.Println("ok")
}

func openaiClient(key string) openai.Client {
	return openai.NewClient(openaioption.WithBaseURL(gateway+"/v1"), openaioption.WithAPIKey(key), openaioption.WithMaxRetries(0))
}

func ask(model, what string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{Model: model, Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(what)}}
}

func openaiWhole(ctx context.Context, model string) error {
	client := openaiClient(os.Getenv("AID_KEY"))
	r, err := client.Chat.Completions.New(ctx, ask(model, "hello"))
	if err != nil {
		return err
	}
	if r.Choices[0].Message.Content != text || r.Usage.TotalTokens != 20 {
		return fmt.Errorf("%s", r.RawJSON())
	}
	return nil
}

func openaiStream(ctx context.Context, model string) error {
	client := openaiClient(os.Getenv("AID_KEY"))
	p := ask(model, "hello")
	p.StreamOptions = openai.ChatCompletionStreamOptionsParam{IncludeUsage: openai.Bool(true)}
	stream := client.Chat.Completions.NewStreaming(ctx, p)
	var whole openai.ChatCompletionAccumulator
	for stream.Next() {
		if !whole.AddChunk(stream.Current()) {
			return errors.New("a chunk that does not belong to the response")
		}
	}
	if err := stream.Err(); err != nil {
		return err
	}
	if whole.Choices[0].Message.Content != text || whole.Usage.TotalTokens != 20 {
		return fmt.Errorf("%q, %d tokens", whole.Choices[0].Message.Content, whole.Usage.TotalTokens)
	}
	return nil
}

func openaiTools(ctx context.Context, model string) error {
	client := openaiClient(os.Getenv("AID_KEY"))
	p := ask(model, question)
	p.Tools = []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(shared.FunctionDefinitionParam{
		Name: "get_weather", Description: openai.String("The weather in a city"), Parameters: parameters})}
	first, err := client.Chat.Completions.New(ctx, p)
	if err != nil {
		return err
	}
	m := first.Choices[0].Message
	if len(m.ToolCalls) != 1 || m.ToolCalls[0].Function.Name != "get_weather" || !strings.Contains(m.ToolCalls[0].Function.Arguments, "Lisbon") {
		return fmt.Errorf("%s", first.RawJSON())
	}
	p.Messages = append(p.Messages, m.ToParam(), openai.ToolMessage("21 C", m.ToolCalls[0].ID))
	second, err := client.Chat.Completions.New(ctx, p)
	if err != nil {
		return err
	}
	if second.Choices[0].Message.Content != result {
		return fmt.Errorf("%s", second.RawJSON())
	}
	return nil
}

func openaiModels(ctx context.Context) error {
	client := openaiClient(os.Getenv("AID_KEY"))
	page, err := client.Models.List(ctx)
	if err == nil && len(page.Data) == 0 {
		err = errors.New("no models")
	}
	return err
}

func openaiRejected(ctx context.Context, key string) error {
	client := openai.NewClient(openaioption.WithBaseURL(gateway+"/v1"), openaioption.WithAPIKey(key))
	_, err := client.Chat.Completions.New(ctx, ask("gpt-4o", "hello"))
	var e *openai.Error
	if !errors.As(err, &e) || e.StatusCode != 401 || e.Response.Header.Get("x-should-retry") != "false" {
		return fmt.Errorf("%T %v", err, err)
	}
	return nil
}

const claude = "claude-sonnet-4-20250514"

func anthropicClient(key string) anthropic.Client {
	return anthropic.NewClient(anthropicoption.WithBaseURL(gateway), anthropicoption.WithAPIKey(key), anthropicoption.WithMaxRetries(0))
}

func message(what string) anthropic.MessageNewParams {
	return anthropic.MessageNewParams{Model: claude, MaxTokens: 100, Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock(what))}}
}

func anthropicWhole(ctx context.Context) error {
	client := anthropicClient(os.Getenv("AID_KEY"))
	r, err := client.Messages.New(ctx, message("hello"))
	if err != nil {
		return err
	}
	if r.Content[0].Text != text || r.Usage.OutputTokens != 9 {
		return fmt.Errorf("%s", r.RawJSON())
	}
	return nil
}

func anthropicStream(ctx context.Context) error {
	client := anthropicClient(os.Getenv("AID_KEY"))
	stream := client.Messages.NewStreaming(ctx, message("hello"))
	var whole anthropic.Message
	for stream.Next() {
		if err := whole.Accumulate(stream.Current()); err != nil {
			return err
		}
	}
	if err := stream.Err(); err != nil {
		return err
	}
	if whole.Content[0].Text != text {
		return fmt.Errorf("%q", whole.Content[0].Text)
	}
	return nil
}

func anthropicTools(ctx context.Context) error {
	client := anthropicClient(os.Getenv("AID_KEY"))
	p := message(question)
	p.Tools = []anthropic.ToolUnionParam{{OfTool: &anthropic.ToolParam{Name: "get_weather", Description: anthropic.String("The weather in a city"),
		InputSchema: anthropic.ToolInputSchemaParam{Properties: parameters["properties"], Required: []string{"city"}}}}}
	first, err := client.Messages.New(ctx, p)
	if err != nil {
		return err
	}
	call := first.Content[len(first.Content)-1]
	var in struct{ City string }
	if err := json.Unmarshal(call.Input, &in); err != nil || call.Name != "get_weather" || in.City != "Lisbon" {
		return fmt.Errorf("%v %s", err, first.RawJSON())
	}
	p.Messages = append(p.Messages, first.ToParam(), anthropic.NewUserMessage(anthropic.NewToolResultBlock(call.ID, "21 C", false)))
	second, err := client.Messages.New(ctx, p)
	if err != nil {
		return err
	}
	if second.Content[0].Text != result {
		return fmt.Errorf("%s", second.RawJSON())
	}
	return nil
}

func anthropicModels(ctx context.Context) error {
	client := anthropicClient(os.Getenv("AID_KEY"))
	page, err := client.Models.List(ctx, anthropic.ModelListParams{Limit: anthropic.Int(1000)}) // as Claude Code asks
	if err == nil && len(page.Data) == 0 {
		err = errors.New("no models")
	}
	return err
}

func anthropicRejected(ctx context.Context, key string) error {
	client := anthropic.NewClient(anthropicoption.WithBaseURL(gateway), anthropicoption.WithAPIKey(key))
	_, err := client.Messages.New(ctx, message("hello"))
	var e *anthropic.Error
	if !errors.As(err, &e) || e.StatusCode != 401 || e.Response.Header.Get("x-should-retry") != "false" {
		return fmt.Errorf("%T %v", err, err)
	}
	return nil
}
