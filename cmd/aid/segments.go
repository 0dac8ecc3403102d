package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/xds"
)

func segmentsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "segments",
		Short: "Read or ship the audit records in a node's segment folder",
		Long: `segments works on the folder of ` + "`aid extproc --segments`" + ` while no sidecar uses it,
for example on the disk of a failed node. A folder that a process uses is rejected.

  inspect   list the segments and their damage
  ship      send the records that the control plane does not have
  export    write the records as JSON lines

Records have no prompts, no responses and no keys.

Exit codes: 0 done; 1 damaged, or not all records were shipped; 2 wrong usage.`,
	}
	cmd.AddCommand(segmentsInspectCommand(), segmentsShipCommand(), segmentsExportCommand())
	return cmd
}

func segmentsInspectCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect FOLDER",
		Short: "List segments with writers, numbers, orgs and kinds, and find damage",
		Long: `inspect reads every record in a segment folder and changes nothing. For each segment
it lists the writer, the numbers, the organizations, the kinds, and whether the
control plane has all of it.

A torn end is a write that a crash interrupted. It was never reported as durable, so
nothing is lost. Other damage is listed with file and byte.

Exit codes: 0 no damage; 1 a segment is damaged, or the folder is in use;
2 wrong usage.`,
		Example: `  aid segments inspect /var/lib/aid/segments
  aid segments inspect --json /var/lib/aid/segments`,
		Args: oneFolder,
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := audit.OpenFolder(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			out := cmd.OutOrStdout()
			if asJSON {
				e := json.NewEncoder(out)
				e.SetIndent("", "  ")
				if err := e.Encode(f); err != nil {
					return err
				}
			} else {
				showFolder(out, f)
			}
			if f.Damaged > 0 {
				return fmt.Errorf("%s: %d of %d segments are damaged: keep the folder; `aid segments export` reads the records before the damage", f.Dir, f.Damaged, len(f.Segments))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object instead of text")
	return cmd
}

func oneFolder(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usagef("name one segment folder, such as /var/lib/aid/segments; see `%s --help`", cmd.CommandPath())
	}
	return nil
}

func showFolder(out io.Writer, f *audit.Folder) {
	counts := func(m map[string]int64) string {
		var s []string
		for _, k := range slices.Sorted(maps.Keys(m)) {
			s = append(s, fmt.Sprintf("%s %d", k, m[k]))
		}
		return strings.Join(s, ", ")
	}
	for _, s := range f.Segments {
		fmt.Fprintf(out, "%s\n  writer    %s (format %d)\n", s.File, s.Writer, s.Version)
		if s.Records == 0 {
			fmt.Fprintln(out, "  records   0")
		} else {
			shipped := "not all shipped"
			if s.Acked {
				shipped = "shipped"
			}
			fmt.Fprintf(out, "  records   %d, from %d to %d, %s\n  orgs      %s\n  kinds     %s\n", s.Records, s.First, s.Last, shipped, counts(s.Orgs), counts(s.Kinds))
		}
		if s.Open > 0 {
			fmt.Fprintf(out, "  open      %d requests were in flight at its begin\n", s.Open)
		}
		if s.Torn > 0 {
			fmt.Fprintf(out, "  torn end  %d bytes of an interrupted write\n", s.Torn)
		}
		if s.Taken > 0 {
			fmt.Fprintf(out, "  not valid %d records at the end, which could not be made durable\n", s.Taken)
		}
		if s.Problem != "" {
			fmt.Fprintf(out, "  DAMAGED   %s\n", s.Problem)
		}
	}
	fmt.Fprintf(out, "%d segments, %d records, %d of them not shipped (all up to number %d are)\n", len(f.Segments), f.Records, f.Unacked, f.Acked)
}

func segmentsExportCommand() *cobra.Command {
	var org string
	var unshipped bool
	cmd := &cobra.Command{
		Use:   "export FOLDER",
		Short: "Write records as JSON lines",
		Long: `export writes one JSON object per line to stdout, the oldest record first. The fields are
receipt (as the caller received it), writer, writer_seq, prev, org, segment, shipped, and
entry. entry has exactly the bytes that are hashed. An entry that is not JSON is in
entry_base64.

From a damaged segment it writes the records before the damage, and exits with 1.

Exit codes: 0 all records were written; 1 a segment is damaged, or the folder is in
use; 2 wrong usage.`,
		Example: `  aid segments export /var/lib/aid/segments > records.jsonl
  aid segments export --org org_default --unshipped /var/lib/aid/segments
  aid segments export /var/lib/aid/segments | jq -r .receipt > receipts.txt`,
		Args: oneFolder,
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := audit.OpenFolder(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			out := bufio.NewWriterSize(cmd.OutOrStdout(), 256<<10)
			var line []byte
			err = f.Each(func(r audit.FolderRecord) error {
				if org != "" && r.Org != org || unshipped && r.Acked {
					return nil
				}
				line = appendRecord(line[:0], r)
				_, err := out.Write(line)
				return err
			})
			if e := out.Flush(); err == nil {
				err = e
			}
			if err == nil && f.Damaged > 0 {
				err = fmt.Errorf("%s: %d of %d segments are damaged; only the records before the damage were written", f.Dir, f.Damaged, len(f.Segments))
			}
			return err
		},
	}
	cmd.Flags().StringVar(&org, "org", "", "write only records of this organization (default: all)")
	cmd.Flags().BoolVar(&unshipped, "unshipped", false, "write only records that the control plane does not have, as far as the node has recorded")
	return cmd
}

// appendRecord encodes a record without a JSON encoder, which could change the entry's bytes.
func appendRecord(b []byte, r audit.FolderRecord) []byte {
	text := func(s string) []byte {
		q, _ := json.Marshal(s) // never fails for a string
		return q
	}
	b = append(append(b, `{"receipt":`...), text(r.Receipt().String())...)
	b = append(append(b, `,"writer":`...), text(r.Writer)...)
	b = strconv.AppendUint(append(b, `,"writer_seq":`...), r.Seq, 10)
	b = strconv.AppendUint(append(b, `,"prev":`...), r.Prev, 10)
	b = append(append(b, `,"org":`...), text(r.Org)...)
	b = append(append(b, `,"segment":`...), text(r.File)...)
	b = strconv.AppendBool(append(b, `,"shipped":`...), r.Acked)
	if json.Valid(r.Entry) && !strings.ContainsAny(string(r.Entry), "\r\n") {
		b = append(append(b, `,"entry":`...), r.Entry...)
	} else {
		b = append(append(b, `,"entry_base64":`...), text(base64.StdEncoding.EncodeToString(r.Entry))...)
	}
	return append(b, '}', '\n')
}

func segmentsShipCommand() *cobra.Command {
	s := &sidecar{}
	var patience time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ship FOLDER",
		Short: "Send the records that the control plane does not have",
		Long: `ship does what the node's sidecar would do at its next start. It completes requests
that were in flight (outcome "unknown"), and sends all records in the folder. The
control plane drops those that it has.

It needs a token or certificate of a node that serves the same organizations. With the
failed node's own, the records continue its writers. With another node's, they are
stored beside them as a fork, with the same bytes.

You can stop it and run it again: no record is stored twice. The disk needs space for
one segment. If it has none, copy the folder to another disk first.

Exit codes: 0 the control plane has all records; 1 some were rejected, and the error
names the organization; 2 wrong usage.`,
		Example: `  aid segments ship --xds control.example.com:18000 --tls-ca ca.pem --token-file vm-7.token /mnt/vm-7/segments`,
		Args:    oneFolder,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			s.segments = args[0]
			if s.log, err = logger(cmd, "segments"); err != nil {
				return err
			}
			if s.xds == "" {
				return usagef("--xds is required: set it to the address of the control plane, such as control.example.com:18000 or unix:/run/aid/xds.sock")
			}
			if s.files.ca == "" && !local(s.xds) {
				return usagef("--xds %s is not on this machine: set --tls-ca", s.xds)
			}
			if patience <= 0 {
				return usagef("--patience %v: set a time above 0, such as 2m", patience)
			}
			if _, err := os.Stat(s.segments); err != nil {
				return usagef("%v", err)
			}
			result, err := s.shipFolder(cmd.Context(), patience, cmd.ErrOrStderr())
			if asJSON {
				if e := json.NewEncoder(cmd.OutOrStdout()).Encode(result); err == nil {
					err = e
				}
			} else if err == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "the control plane has all of %s: %d records were sent, 0 are left\n", s.segments, result.Sent)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&s.xds, "xds", "", "`address` of the control plane: host:port, or unix:/path")
	f.StringVar(&s.tokenFile, "token-file", "", "`file` with a node's join token (or a client certificate)")
	f.StringVar(&s.files.ca, "tls-ca", "", "PEM `file` of the CA of the control plane's certificate; required unless the control plane is on this machine")
	f.StringVar(&s.serverName, "tls-server-name", "", "name in the control plane's certificate (default: the host of --xds)")
	f.StringVar(&s.files.cert, "tls-cert", "", "PEM `file` of a node's client certificate")
	f.StringVar(&s.files.key, "tls-key", "", "PEM `file` of the key of --tls-cert")
	f.DurationVar(&patience, "patience", 2*time.Minute, "how long to continue while the control plane accepts no record")
	f.BoolVar(&asJSON, "json", false, "print the result as one JSON object; progress stays on stderr")
	return cmd
}

// shipResult is the result of `aid segments ship`.
type shipResult struct {
	Folder string `json:"folder"`
	Sent   uint64 `json:"sent"`
	Left   uint64 `json:"left"`
}

// shipFolder ships until the control plane has all records, or accepts no more of them.
func (s *sidecar) shipFolder(ctx context.Context, patience time.Duration, progress io.Writer) (shipResult, error) {
	result := shipResult{Folder: s.segments}
	ctx, restore := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer restore()
	conn, err := s.dial(newReloads(registry(), s.log))
	if err != nil {
		return result, err
	}
	defer conn.Close()
	host, _ := os.Hostname()
	w, err := audit.OpenWriter(audit.WriterConfig{Dir: s.segments, Node: "aid segments ship on " + host, MinFreeBytes: -1, Resend: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return result, err
	}
	below := newLife(s.log)
	below.start(ctx, "writer", w.Run)
	below.start(ctx, "shipping", func(ctx context.Context) error { return w.Ship(ctx, xds.NewIngest(conn, "")) })
	whole := w.Waiting()
	fmt.Fprintf(progress, "aid: %d records to send\n", whole)
	err = s.watch(ctx, below, w, patience, func(left uint64) {
		fmt.Fprintf(progress, "aid: %d of %d records sent\n", whole-min(left, whole), whole)
	})
	result.Left = w.Waiting()
	result.Sent = whole - min(result.Left, whole)
	below.stop(10 * time.Second)
	if e := w.Close(); err == nil {
		err = e
	}
	return result, err
}

// watch waits until no record is left. It returns an error if the number stays the same for patience.
func (s *sidecar) watch(ctx context.Context, below *life, w *audit.Writer, patience time.Duration, say func(left uint64)) error {
	left, since := w.Waiting(), time.Now()
	told := since
	for {
		turn, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		err := w.WaitShipped(turn)
		cancel()
		switch now := w.Waiting(); {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("stopped: %d records are left: run the command again to continue", now)
		case now < left:
			left, since = now, time.Now()
		}
		select {
		case err := <-below.ended:
			return err
		default:
		}
		if time.Since(told) >= 2*time.Second {
			told = time.Now()
			say(left)
		}
		if time.Since(since) > patience {
			if err := w.Failure(); err != nil {
				return fmt.Errorf("%d records are left, and the control plane has accepted none for %v: %w", left, patience, err)
			}
			return fmt.Errorf("%d records are left, and none was accepted for %v: check that the control plane runs at %s", left, patience, s.xds)
		}
	}
}
