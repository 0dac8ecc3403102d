package audit_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ai-identity/ai-identity/audit"
)

// full sets every field of v, recursively, to a value that is not zero and is different from
// those of all other fields.
func full(v reflect.Value, n *int) {
	*n++
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Date(2026, 7, 1, 12, 0, *n, 123456000, time.UTC)))
		return
	case audit.Scalars:
		v.Set(reflect.ValueOf(audit.Scalars{"text": fmt.Sprint("s", *n), "number": json.Number("1.50"), "truth": true}))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			full(v.Field(i), n)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		full(v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			full(v.Index(i), n)
		}
	case reflect.String:
		v.SetString(fmt.Sprint("s", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint64:
		v.SetUint(uint64(*n))
	default:
		panic("no value for a field of type " + v.Type().String())
	}
}

// TestEncodeForgetsNoField sets every field of every kind, and reads each back.
func TestEncodeForgetsNoField(t *testing.T) {
	for _, kind := range []audit.Entry{audit.Decided{}, audit.Settled{}, audit.Changed{}, audit.Started{}, audit.Gap{}, audit.UnknownCallers{}, audit.RepeatedRejections{}, audit.Reopened{}} {
		v := reflect.New(reflect.TypeOf(kind)).Elem()
		n := 0
		full(v, &n)
		want := v.Interface().(audit.Entry)
		got, err := audit.Parse(want.Encode())
		if err != nil {
			t.Fatalf("%T: %v", kind, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%T: what was encoded and what was read (-want +got):\n%s", kind, d)
		}
		for i := range v.NumField() {
			f := v.Type().Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if !strings.Contains(string(want.Encode()), `"`+name+`":`) {
				t.Errorf("%T: %s is not written as %q", kind, f.Name, name)
			}
		}
	}
}

// A value that is too long is cut, and the entry names the fields that are not complete.
func TestClipped(t *testing.T) {
	long := strings.Repeat("x", 2000)
	metadata := audit.Scalars{}
	for i := range 20 {
		metadata[fmt.Sprintf("k%02d", i)] = long
	}
	for _, c := range []struct {
		name string
		e    audit.Decided
		want []string
	}{
		{"whole", audit.Decided{Path: "/v1/x", AgentMetadata: audit.Scalars{"a": "b", "n": json.Number("1e3"), "f": 0.5, "i": 7}}, nil},
		{"text", audit.Decided{Path: long}, []string{"path"}},
		{"not UTF-8", audit.Decided{UserAgent: "\xff"}, []string{"user_agent"}},
		{"a list", audit.Decided{KeyScopes: make([]string, 100)}, []string{"key_scopes"}},
		{"in a list", audit.Decided{Hosts: []string{"a", long}}, []string{"hosts"}},
		{"in an object", audit.Decided{Reasons: []audit.Reason{{Code: "c", Message: long}}}, []string{"reasons"}},
		{"an object", audit.Decided{AgentMetadata: metadata}, []string{"agent_metadata"}},
		{"of an unknown type", audit.Decided{AgentMetadata: audit.Scalars{"x": []int{1}}}, []string{"agent_metadata"}},
		{"no number", audit.Decided{AgentMetadata: audit.Scalars{"x": json.Number("1}")}}, []string{"agent_metadata"}},
		{"known before", audit.Decided{Path: long, Clipped: []string{"host", "path"}}, []string{"host", "path"}},
	} {
		b := audit.Stamp(c.e, "org_1", "w_1", time.Unix(0, 0)).Encode()
		e, err := audit.Parse(b)
		if err != nil {
			t.Fatalf("%s: %v: %s", c.name, err, b)
		}
		if got := e.(audit.Decided).Clipped; !slices.Equal(got, c.want) {
			t.Errorf("%s: clipped %q, want %q", c.name, got, c.want)
		}
		if again := e.Encode(); string(again) != string(b) {
			t.Errorf("%s: read and written again it is\n%s\nafter\n%s", c.name, again, b)
		}
		if len(b) > audit.MaxEntryBytes/4 {
			t.Errorf("%s: %d bytes", c.name, len(b))
		}
	}
}
