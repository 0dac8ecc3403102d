package api

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
)

// LogEntry is an entry of the audit log in responses: the position in the chain, then the
// entry's own fields.
type LogEntry struct{ stored audit.Stored }

// MarshalJSON writes the position before the entry's own fields. The bytes of these fields
// stay as they were hashed.
func (l LogEntry) MarshalJSON() ([]byte, error) {
	place := struct {
		Seq        int64     `json:"seq"`
		WriterSeq  int64     `json:"writer_seq"`
		AppendedAt time.Time `json:"appended_at"`
		MAC        string    `json:"mac"`
	}{l.stored.Seq, l.stored.WriterSeq, l.stored.AppendedAt.UTC(), hex.EncodeToString(l.stored.MAC)}
	b, err := json.Marshal(place)
	if err != nil {
		return nil, err
	}
	// An entry with fields of the position could show another position than its own.
	var own struct {
		Seq        jsontext.Value `json:"seq"`
		WriterSeq  jsontext.Value `json:"writer_seq"`
		AppendedAt jsontext.Value `json:"appended_at"`
		MAC        jsontext.Value `json:"mac"`
	}
	err = json.Unmarshal(l.stored.Entry, &own)
	poses := len(own.Seq)+len(own.WriterSeq)+len(own.AppendedAt)+len(own.MAC) > 0
	if _, bad := l.stored.Parse(); err != nil || bad != nil || poses || l.stored.Kind == audit.KindMalformed { // its own fields cannot be trusted
		return json.Marshal(struct {
			Seq       int64  `json:"seq"`
			WriterSeq int64  `json:"writer_seq"`
			Kind      string `json:"kind"`
			Writer    string `json:"writer"`
			Bytes     string `json:"entry_base64"`
		}{l.stored.Seq, l.stored.WriterSeq, l.stored.Kind, l.stored.Writer, base64.StdEncoding.EncodeToString(l.stored.Entry)})
	}
	b[len(b)-1] = ','
	return append(b, l.stored.Entry[1:]...), nil
}

// Schema describes the common fields; docs/audit.md has all of them.
func (l LogEntry) Schema(huma.Registry) *huma.Schema {
	text := func(doc string) *huma.Schema { return &huma.Schema{Type: huma.TypeString, Description: doc} }
	return &huma.Schema{
		Type: huma.TypeObject, AdditionalProperties: true,
		Description: "An entry of the audit log. docs/audit.md lists the fields of each kind.",
		Properties: map[string]*huma.Schema{
			"seq":            {Type: huma.TypeInteger, Description: "The entry's number in the org's chain, from 1 and without gaps."},
			"appended_at":    {Type: huma.TypeString, Format: "date-time", Description: "The time at which the entry was appended to the chain."},
			"mac":            text("The entry's HMAC in the chain, in hex."),
			"writer":         text("The process that wrote the entry."),
			"writer_seq":     {Type: huma.TypeInteger, Description: "The entry's number at its writer. A receipt names writer and number, and so does a completion."},
			"kind":           text("request.decided, request.settled, agent.created, …"),
			"time":           {Type: huma.TypeString, Format: "date-time", Description: "The time of the event."},
			"request_id":     text("The request's id, which the caller received as X-Request-ID."),
			"agent_id":       text("The agent of the event."),
			"effect":         text("For request.decided: allow or deny."),
			"reasons":        {Type: huma.TypeArray, Items: &huma.Schema{Type: huma.TypeObject, AdditionalProperties: true}, Description: "For request.decided: the reasons of a denial."},
			"outcome":        text("For request.settled: how the request ended."),
			"decided_writer": text("For request.settled: the writer of its request.decided. Absent: the same writer."),
			"decided_seq":    {Type: huma.TypeInteger, Description: "For request.settled: the writer_seq of its request.decided."},
		},
		Required: []string{"seq", "kind"},
	}
}

// EntriesIn are the parameters of both lists of entries.
type EntriesIn struct {
	Limit     int       `query:"limit" minimum:"1" maximum:"100" default:"20" doc:"The most entries to return."`
	After     string    `query:"after" pattern:"^[1-9][0-9]{0,17}$" patternDescription:"the next of the page before" doc:"The value of next in the page before. The list continues after it." example:"412"`
	Since     time.Time `query:"since" doc:"Return only events at or after this time." example:"2026-01-01T00:00:00Z"`
	Until     time.Time `query:"until" doc:"Return only events before this time." example:"2026-02-01T00:00:00Z"`
	Kind      string    `query:"kind" maxLength:"64" doc:"Return only entries of this kind." example:"request.decided"`
	RequestID string    `query:"request_id" maxLength:"128" doc:"Return only entries of this request."`
	Order     string    `query:"order" enum:"asc,desc" doc:"desc: newest first. asc: oldest first."`
}

func (in EntriesIn) filter(desc bool) audit.Filter {
	switch in.Order {
	case "asc":
		desc = false
	case "desc":
		desc = true
	}
	f := audit.Filter{Kind: in.Kind, RequestID: in.RequestID, Since: in.Since, Until: in.Until, Desc: desc, Limit: in.Limit + 1}
	f.AfterSeq, _ = strconv.ParseInt(in.After, 10, 64) // validation has checked the form
	return f
}

func listLogs(ctx context.Context, x *call, in *struct {
	ByID
	EntriesIn
}) (*paged[LogEntry], error) {
	f := in.filter(true)
	if err := x.known(ctx, in.ID); err != nil {
		return nil, err
	}
	f.AgentID = in.ID
	entries, err := audit.Entries(ctx, x.tx, f)
	if err != nil {
		return nil, err
	}
	rows := each(entries, func(s audit.Stored) LogEntry { return LogEntry{s} })
	return listed(rows, in.Limit, func(l LogEntry) string { return itoa(l.stored.Seq) }), nil
}

// known returns nil if the org has or had the agent. The history of a deleted agent stays
// readable under its id.
func (x *call) known(ctx context.Context, id string) error {
	_, err := x.agent(ctx, id)
	if err == nil || !isID(identity.AgentID, id) {
		return err
	}
	entries, lookErr := audit.Entries(ctx, x.tx, audit.Filter{AgentID: id, Limit: 1})
	if lookErr != nil {
		return lookErr
	}
	if len(entries) == 0 {
		return err
	}
	return nil
}

// ChainEntry is an entry with everything that is needed to verify its position.
type ChainEntry struct {
	Seq        int64     `json:"seq" doc:"The entry's number in the chain." example:"412"`
	AppendedAt time.Time `json:"appended_at" doc:"The time at which the entry was appended, UTC." example:"2026-01-31T12:00:00Z"`
	Kind       string    `json:"kind" doc:"The kind of event." example:"request.decided"`
	Writer     string    `json:"writer" doc:"The process that wrote the entry." example:"w_01k0000000abcdefghjkmnpqrs"`
	WriterSeq  int64     `json:"writer_seq" doc:"The entry's number at the writer. A receipt names writer and number." example:"97"`
	Epoch      int32     `json:"epoch" doc:"The epoch of the HMAC key." example:"1"`
	PrevMAC    string    `json:"prev_mac" doc:"The HMAC of the entry before, in hex."`
	MAC        string    `json:"mac" doc:"The HMAC of this entry, in hex."`
	Entry      string    `json:"entry" doc:"The bytes that were hashed: one line of ASCII JSON."`
}

func exportEntries(ctx context.Context, x *call, in *EntriesIn) (*paged[ChainEntry], error) {
	f := in.filter(false)
	entries, err := audit.Entries(ctx, x.tx, f)
	if err != nil {
		return nil, err
	}
	rows := each(entries, func(s audit.Stored) ChainEntry {
		return ChainEntry{
			Seq: s.Seq, AppendedAt: s.AppendedAt.UTC(), Kind: s.Kind, Writer: s.Writer, WriterSeq: s.WriterSeq, Epoch: s.Epoch,
			PrevMAC: hex.EncodeToString(s.PrevMAC), MAC: hex.EncodeToString(s.MAC), Entry: string(s.Entry),
		}
	})
	return listed(rows, in.Limit, func(e ChainEntry) string { return itoa(e.Seq) }), nil
}

// Usage is an agent's usage.
type Usage struct {
	AgentID string     `json:"agent_id" doc:"The agent's id." example:"ag_01k0000000abcdefghjkmnpqrs"`
	Since   string     `json:"since" doc:"The first day, UTC." example:"2026-01-01"`
	Until   string     `json:"until" doc:"The last day, UTC." example:"2026-01-31"`
	Total   UsageSum   `json:"total" doc:"The sum over all days, providers and models."`
	Data    []UsageRow `json:"data" nullable:"false" doc:"Sums by day, provider and model; oldest first."`
}

// UsageSum is a sum over requests.
type UsageSum struct {
	Requests         int64 `json:"requests" doc:"Completed requests." example:"120"`
	Refused          int64 `json:"refused" doc:"Rejected requests among them." example:"3"`
	InputTokens      int64 `json:"input_tokens" doc:"Input tokens, including cached ones." example:"48210"`
	OutputTokens     int64 `json:"output_tokens" doc:"Output tokens, including reasoning." example:"9120"`
	CachedTokens     int64 `json:"cached_tokens" doc:"Input tokens that were read from a cache." example:"1200"`
	CacheWriteTokens int64 `json:"cache_write_tokens" doc:"Input tokens that were written to a cache." example:"0"`
	ReasoningTokens  int64 `json:"reasoning_tokens" doc:"Output tokens for reasoning." example:"800"`
	CostNanoUSD      int64 `json:"cost_nano_usd" doc:"The known cost, in nano-dollars (10⁻⁹ US dollars)." example:"184050000"`
	ChargedNanoUSD   int64 `json:"charged_nano_usd" doc:"The charge under USD caps, in nano-dollars. It differs from the cost where that is not known." example:"184050000"`
	Unpriced         int64 `json:"unpriced" doc:"Requests with unknown cost. The sum does not include them." example:"2"`
}

// UsageRow is a sum for a day, provider and model.
type UsageRow struct {
	Day      string `json:"day" doc:"The day of the decisions, in the organization's time zone." example:"2026-01-31"`
	Provider string `json:"provider" doc:"The provider's name. Empty for requests that were rejected before routing." example:"openai"`
	Model    string `json:"model" doc:"The model that the client requested. (other) stands for all models that are in no list." example:"gpt-4o"`
	UsageSum
}

func (s *UsageSum) add(d UsageSum) {
	s.Requests += d.Requests
	s.Refused += d.Refused
	s.InputTokens += d.InputTokens
	s.OutputTokens += d.OutputTokens
	s.CachedTokens += d.CachedTokens
	s.CacheWriteTokens += d.CacheWriteTokens
	s.ReasoningTokens += d.ReasoningTokens
	s.CostNanoUSD += d.CostNanoUSD
	s.ChargedNanoUSD += d.ChargedNanoUSD
	s.Unpriced += d.Unpriced
}

// usageDays is the longest time span of one response, in days.
const usageDays = 400

func getUsage(ctx context.Context, x *call, in *struct {
	ByID
	Since time.Time `query:"since" doc:"The first day is the day of this time. The default is 30 days ago." example:"2026-01-01T00:00:00Z"`
	Until time.Time `query:"until" doc:"The last day is the day of this time. The default is today." example:"2026-01-31T00:00:00Z"`
}) (*one[Usage], error) {
	if err := x.known(ctx, in.ID); err != nil {
		return nil, err
	}
	since, until, err := usageSpan(in.Since, in.Until, x.now)
	if err != nil {
		return nil, err
	}
	if since, until, err = x.days(ctx, since, until); err != nil {
		return nil, err
	}
	days, err := audit.DailyUsage(ctx, x.tx, in.ID, since, until)
	if err != nil {
		return nil, err
	}
	out := Usage{AgentID: in.ID, Since: since.UTC().Format(time.DateOnly), Until: until.UTC().Format(time.DateOnly), Data: []UsageRow{}}
	for _, d := range days {
		sum := sumOf(d)
		out.Data = append(out.Data, UsageRow{Day: d.Day.Format(time.DateOnly), Provider: d.Provider, Model: d.Model, UsageSum: sum})
		out.Total.add(sum)
	}
	return &one[Usage]{Body: out}, nil
}
