package main

import (
	"context"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/anchor"
	"github.com/ai-identity/ai-identity/audit/evidence"
)

// anchoring has the places outside of the database that get the checkpoints.
type anchoring struct {
	anchors, witnesses []string
	quorum             int
}

func (a *anchoring) flags(f *pflag.FlagSet) {
	f.StringSliceVar(&a.anchors, "anchor", nil, "`URIs` of places outside of the database that store checkpoints: file:FOLDER or s3://BUCKET/PREFIX?region=REGION (default: none)")
	f.StringSliceVar(&a.witnesses, "witness", nil, "`URL=VKEY` of each C2SP witness that cosigns the directory's checkpoints (default: none)")
	f.IntVar(&a.quorum, "witness-quorum", 0, "alert if fewer witnesses than this cosign (default: all of them)")
}

// check validates the flags before the database is opened.
func (a *anchoring) check(ctx context.Context, signs bool) error {
	if a.quorum < 0 || a.quorum > len(a.witnesses) {
		return usagef("--witness-quorum %d: the number of --witness flags is %d", a.quorum, len(a.witnesses))
	}
	if a.quorum == 0 {
		a.quorum = len(a.witnesses)
	}
	for flag, given := range map[string][]string{"anchor": a.anchors, "witness": a.witnesses} {
		for i, v := range given {
			if slices.Contains(given[:i], v) {
				return usagef("--%s %s is there twice", flag, v)
			}
		}
		if len(given) > 0 && !signs {
			return usagef("--%s needs --signing-key and --witness-key: without them there are no checkpoints", flag)
		}
	}
	for _, uri := range a.anchors {
		if _, err := anchor.Open(ctx, uri); err != nil {
			return usagef("--anchor %s: %v", uri, err)
		}
	}
	_, _, err := a.named("check", nil)
	return err
}

// named returns the witnesses of the log with this name, and their own names.
func (a *anchoring) named(logName string, store anchor.Cosignatures) (all []*anchor.Witness, names []string, err error) {
	for _, flag := range a.witnesses {
		w, err := anchor.NewWitness(flag, evidence.DirectoryOrigin(logName), store)
		if err != nil {
			return nil, nil, usagef("--witness %s: %v", flag, err)
		}
		if slices.Contains(names, w.Name) {
			return nil, nil, usagef("--witness %s: two witnesses are named %s", flag, w.Name)
		}
		all, names = append(all, w), append(names, w.Name)
	}
	return all, names, nil
}

// open returns the anchors, with their metrics.
func (a *anchoring) open(ctx context.Context, logName string, db audit.WitnessPool, reg prometheus.Registerer) ([]audit.Anchor, error) {
	var all []anchor.Anchor
	for _, uri := range a.anchors {
		opened, err := anchor.Open(ctx, uri)
		if err != nil {
			return nil, usagef("--anchor %s: %v", uri, err)
		}
		all = append(all, opened)
	}
	_, names, err := a.named(logName, nil)
	if err != nil {
		return nil, err
	}
	store, err := audit.NewWitnesses(audit.WitnessesConfig{Pool: db, Names: names, Quorum: a.quorum, Registerer: reg})
	if err != nil {
		return nil, err
	}
	witnesses, _, err := a.named(logName, store)
	if err != nil {
		return nil, err
	}
	for _, w := range witnesses {
		all = append(all, w)
	}
	var out []audit.Anchor
	for _, m := range anchor.Measured(all, time.Now, reg) {
		out = append(out, m)
	}
	return out, nil
}
