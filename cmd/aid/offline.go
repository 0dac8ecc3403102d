package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/envoy"
)

// offline verifies files, without a database. cli/ai_identity_verify.py does the same, and
// shares no code with it.
type offline struct {
	on            bool
	jwks          string
	pins          []string
	checkpoints   []string
	bundle        string
	contradiction string
	verbose       bool
}

func (o *offline) flags(f *pflag.FlagSet) {
	f.BoolVar(&o.on, "offline", false, "verify files instead of a database")
	f.StringVar(&o.jwks, "jwks", "", "with --offline: `file` with the public keys (default: jwks.json in this folder)")
	f.StringArrayVar(&o.pins, "pin", nil, "with --offline: trust only the key with this `kid`, and keys that replaced it; may be repeated")
	f.StringArrayVar(&o.checkpoints, "checkpoint", nil, "with --offline: `file` with a checkpoint that you kept; may be repeated")
	f.StringVar(&o.bundle, "bundle", "", "with --offline checkpoint: `file` with consistency proofs")
	f.StringVar(&o.contradiction, "evidence", "", "with --offline: write two checkpoints that contradict each other to this `file`")
	f.BoolVar(&o.verbose, "verbose", false, "with --offline: print each check")
}

// exitError sets the exit code. What there is to say was printed.
type exitError struct{ code int }

func (e *exitError) Error() string { return "exit code " + strconv.Itoa(e.code) }

// exitUsage is the exit code of wrong usage with --offline. Codes 0 to 2 are those of evidence.
const exitUsage = 3

// run verifies the files of args, and prints the result.
func (o *offline) run(cmd *cobra.Command, args []string, asJSON bool) error {
	v, err := o.verify(args)
	if err != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "aid: %v\n", err)
		return &exitError{exitUsage}
	}
	if o.contradiction != "" && len(v.Proof) > 0 {
		if err := os.WriteFile(o.contradiction, []byte(strings.Join(v.Proof, "\n")), 0o644); err != nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "aid: %v\n", err)
			return &exitError{exitUsage}
		}
	}
	if asJSON {
		out := json.NewEncoder(cmd.OutOrStdout())
		out.SetIndent("", "  ")
		err = out.Encode(v)
	} else {
		err = o.show(cmd.OutOrStdout(), v)
	}
	if err != nil {
		return err
	}
	if v.Exit != evidence.Intact {
		return &exitError{v.Exit}
	}
	return nil
}

// offlineCommands are what a first argument can be. Other first arguments are exports.
var offlineCommands = []string{"chain", "report", "attestation", "checkpoint", "bundle", "receipt"}

func (o *offline) verify(args []string) (v evidence.Verdict, err error) {
	command := "chain"
	if len(args) > 0 && slices.Contains(offlineCommands, args[0]) {
		command, args = args[0], args[1:]
	}
	want := map[string]int{"receipt": 2}[command]
	switch {
	case command == "checkpoint" && len(args) == 0, command != "checkpoint" && len(args) != max(1, want):
		return v, fmt.Errorf("wrong arguments of %s: see aid audit verify --help", command)
	}
	keys, why, err := o.keys()
	if err != nil {
		return v, err
	}
	defer func() {
		if err == nil && why != "" {
			v.Notes = append([]string{why}, v.Notes...)
		}
	}()
	held := func(names []string) (notes []evidence.HeldNote, err error) {
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil {
				return nil, err
			}
			notes = append(notes, evidence.HeldNote{From: name, Note: b})
		}
		return notes, nil
	}
	switch command {
	case "chain":
		f, err := os.Open(args[0])
		if err != nil {
			return v, err
		}
		defer f.Close()
		c := evidence.ChainOptions{Keys: keys}
		if c.Held, err = held(o.checkpoints); err != nil {
			return v, err
		}
		if c.MACKeys, err = macKeys(os.Getenv("AI_IDENTITY_HMAC_KEY")); err != nil {
			return v, err
		}
		return evidence.VerifyChain(f, c), nil
	case "checkpoint":
		notes, err := held(args)
		if err != nil {
			return v, err
		}
		var bundle []byte
		if o.bundle != "" {
			if bundle, err = os.ReadFile(o.bundle); err != nil {
				return v, err
			}
		}
		return evidence.VerifyCheckpoints(notes, keys, bundle), nil
	}
	b, err := os.ReadFile(args[len(args)-1])
	if err != nil {
		return v, err
	}
	switch command {
	case "report":
		return evidence.VerifyReport(b, keys), nil
	case "attestation":
		return evidence.VerifyAttestation(b, keys), nil
	case "bundle":
		return evidence.VerifyBundle(b, keys), nil
	}
	text := strings.TrimSpace(args[0])
	if name, value, ok := strings.Cut(text, ":"); ok && strings.EqualFold(name, envoy.HeaderReceipt) {
		text = strings.TrimSpace(value)
	}
	return evidence.VerifyReceipt(text, b, keys), nil
}

// keys reads the JWKS. Without usable keys it returns why: nothing is intact then.
func (o *offline) keys() (set evidence.KeySet, why string, err error) {
	name := o.jwks
	if name == "" {
		name = "jwks.json"
		if _, err := os.Stat(name); errors.Is(err, os.ErrNotExist) {
			return set, "there is no JWKS: fetch /.well-known/jwks.json, compare its key ids with the ones you were given, and use --jwks FILE", nil
		}
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return set, "", err
	}
	if set, err = evidence.ParseJWKS(b); err != nil {
		return evidence.KeySet{}, name + ": " + err.Error(), nil
	}
	if set, err = set.Pin(o.pins...); err != nil {
		return evidence.KeySet{}, name + ": " + err.Error(), nil
	}
	return set, "", nil
}

var (
	hexKey   = regexp.MustCompile(`^(?:[0-9a-fA-F]{2}){32,64}$`)
	epochKey = regexp.MustCompile(`^([1-9][0-9]{0,9})[:\s]\s*((?:[0-9a-fA-F]{2}){32,64})(?:\s+from=\S+)?$`)
)

// macKeys parses HEX, EPOCH:HEX,… or the name of a file with one of these, or with lines
// EPOCH HEX. No error quotes the text.
func macKeys(text string) (map[int32][]byte, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return nil, nil
	}
	keys := parseMACKeys(text)
	if keys == nil {
		if b, err := os.ReadFile(text); err == nil {
			keys = parseMACKeys(strings.TrimSpace(string(b)))
		}
	}
	if keys == nil {
		return nil, errors.New("AI_IDENTITY_HMAC_KEY is not HEX (64 to 128 digits), EPOCH:HEX,EPOCH:HEX or the name of a file with them")
	}
	return keys, nil
}

func parseMACKeys(text string) map[int32][]byte {
	keys := make(map[int32][]byte)
	if hexKey.MatchString(text) {
		keys[0], _ = hex.DecodeString(text) // hexKey has checked it
		return keys
	}
	for item := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ',' || r == '\n' }) {
		if item = strings.TrimSpace(item); item == "" || item[0] == '#' {
			continue
		}
		m := epochKey.FindStringSubmatch(item)
		if m == nil {
			return nil
		}
		epoch, err := strconv.ParseInt(m[1], 10, 32)
		if _, twice := keys[int32(epoch)]; err != nil || twice {
			return nil
		}
		keys[int32(epoch)], _ = hex.DecodeString(m[2]) // epochKey has checked it
	}
	if len(keys) == 0 {
		return nil
	}
	return keys
}

// show prints the result as text.
func (o *offline) show(w io.Writer, v evidence.Verdict) error {
	var b strings.Builder
	b.WriteString(strings.ToUpper(v.Verdict))
	if v.Problem != "" {
		b.WriteString(": ")
		if v.Where != "" {
			b.WriteString(v.Where + ": ")
		}
		b.WriteString(v.Problem)
	}
	b.WriteString("\n")
	if v.Complete != "" {
		b.WriteString("completeness: " + v.Complete + "\n")
	}
	if o.verbose {
		for _, line := range v.Checks {
			b.WriteString("  checked: " + line + "\n")
		}
	}
	for _, line := range v.Notes {
		b.WriteString("  note: " + line + "\n")
	}
	for _, note := range v.Proof {
		b.WriteString("\n--- checkpoint ---\n" + note)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
