#!/usr/bin/env bash
# Edit and run:   bash run_test.sh
set -eu
MODEL_PATH=${MODEL_PATH:-train_results/digits/digits.pt}  # a checkpoint of train_solver.py; make demo makes this one
SAMPLE_NUM=100                                            # pictures
SEED=0
SAVE_DIR=results

# pictures out of noise, with two samplers: METHOD_STEPS_ETA
python test_solver.py --model_path "$MODEL_PATH" --test_mode random_gen \
    --sample_info DPMpp_10_0p0 DDPM_100_0p0 --sample_num $SAMPLE_NUM --seed $SEED --save_dir $SAVE_DIR

# the same noise through every method: which one needs how many steps?
python test_solver.py --model_path "$MODEL_PATH" --test_mode compare --seed $SEED --save_dir $SAVE_DIR \
    --sample_info {NaiveDDPM,DDPM,DDIM,DPMpp}_{10,20,50}_0p0

# from one real picture to another, through noise
python test_solver.py --model_path "$MODEL_PATH" --test_mode interpolate \
    --sample_info DDPM_1000_0p0 --sample_num $SAMPLE_NUM --seed $SEED --save_dir $SAVE_DIR

# three ways to do so and one mistake, and how smoothly each goes
python test_solver.py --model_path "$MODEL_PATH" --test_mode interpolate --interp_mode lerp slerp ddim redrawn \
    --sample_info DDIM_50_0p0 --sample_num $SAMPLE_NUM --seed $SEED --save_dir $SAVE_DIR
